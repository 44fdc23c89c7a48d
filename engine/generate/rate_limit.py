"""Keeping below a server's requests and tokens a minute: token buckets that never hold a minute's worth at once."""

from __future__ import annotations

__all__ = ["Bucket", "RateLimit"]

BURST_SECONDS = 1.0


class Bucket:
    """Units that come in at a steady rate, up to a second's worth (and at least one).

    In any ``t`` seconds no more than ``capacity + rate * t`` units are taken, a last overdraft aside: what is larger
    than the bucket may be taken from a full one, and is paid back before the next. Times are a monotonic clock's.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.rate = per_minute / 60.0
        self.capacity = max(1.0, self.rate * BURST_SECONDS)
        self._level, self._at = 1.0, now  # not full: a run begins at its rate, not with a burst above it

    def wait(self, units: float, now: float) -> float:
        """Seconds until ``units`` may be taken; 0 for at once."""
        self._fill(now)
        short = min(units, self.capacity) - self._level
        # A hair's breadth below is enough, or rounding could ask for a wait too short for the clock to show.
        return short / self.rate if short > 1e-9 * self.capacity else 0.0

    def take(self, units: float) -> None:
        """Take ``units``; a negative number gives them back."""
        self._level = min(self.capacity, self._level - units)

    def _fill(self, now: float) -> None:
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now


class RateLimit:
    """A bucket of requests and one of tokens, either of which may be absent (0 a minute: no limit)."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, now: float) -> None:
        self._requests = Bucket(requests_per_minute, now) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, now) if tokens_per_minute else None

    def wait(self, tokens: float, now: float) -> float:
        """Seconds until a request of about ``tokens`` (prompt and answer) may be sent."""
        waits = [0.0]
        if self._requests is not None:
            waits.append(self._requests.wait(1.0, now))
        if self._tokens is not None:
            waits.append(self._tokens.wait(tokens, now))
        return max(waits)

    def take(self, tokens: float) -> None:
        """Count one request of about ``tokens``."""
        if self._requests is not None:
            self._requests.take(1.0)
        if self._tokens is not None:
            self._tokens.take(tokens)

    def settle(self, expected: float, used: float) -> None:
        """Put right what `take` counted, once the server has said what a request used."""
        if self._tokens is not None:
            self._tokens.take(used - expected)
