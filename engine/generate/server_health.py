"""How one server is doing, told from its answers alone: how many requests it takes at once, and whether it answers.

Requests in flight follow TCP's rule (additive increase, multiplicative decrease, Chiu & Jain 1989, with slow start):
one more for each answer up to what last proved too much, a hundredth of the whole a round beyond, down to 0.7 when the
server says that it is busy. A server that fails everyone is *down*: it is asked one thing at a time, at growing
intervals, until it answers. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

__all__ = ["ServerHealth"]

CUT = 0.7
LONGEST_PROBE_PAUSE = 10.0  # seconds; a probe costs little, and an idle minute of a large machine does not
DOWN_AFTER = 3  # failures in a row, and a share of those in flight: bad luck among thousands is no outage
OUTAGE_BLAME = 0.25  # how much a failure counts against its row that came while the server failed everyone


class ServerHealth:
    """The state of one server; every call is given the time."""

    def __init__(self, most: int, first_pause: float) -> None:
        """At most ``most`` requests at once; ``first_pause`` before the second probe of a server that is down."""
        self.most, self.active = most, 0
        self.probing = False
        self._limit = self._steady = float(most)
        self._cut_at = float("-inf")
        self._first_pause = first_pause
        self._failures = 0  # since the last answer
        self._failing_since = 0.0
        self._last_answer = float("-inf")
        self._probes = 0
        self._probe_at = 0.0
        self.down = False
        self.trouble = ""
        """What went wrong last."""
        self._outage = (0.0, float("-inf"))

    @property
    def limit(self) -> int:
        """Requests that it may have at once now."""
        return int(self._limit)

    def room(self, now: float) -> bool:
        """Whether one more request may be sent; to a server that is down, only a probe when its time has come."""
        if self.down:
            return not self.probing and now >= self._probe_at
        return self.active < int(self._limit)

    def next_probe(self) -> float | None:
        """When a server that is down is asked again; None where no such time is set."""
        return self._probe_at if self.down and not self.probing else None

    def failing_for(self, now: float) -> float:
        """Seconds since the first failure after its last answer; 0 where it is not down."""
        return now - self._failing_since if self.down else 0.0

    def answered(self, now: float) -> None:
        """It dealt with a request, be it by refusing the row."""
        if self.down:
            if self._probes:
                self._outage = (self._failing_since, now)
                self._limit = 1.0  # slow start: those that failed with it may well be what ails it
            self.down = False
        self._failures = self._probes = 0
        self._last_answer = now
        # Only where the limit was felt: otherwise an idle spell would raise it to anything.
        if self._limit < self.most and self.active + 1 >= int(self._limit):
            step = 1.0 if self._limit < self._steady else max(1.0, self.most / 100) / self._limit
            self._limit = min(float(self.most), self._limit + step)

    def failed(
        self, now: float, sent_at: float, trouble: str, *, probe: bool, busy: bool = False, wait: float = 0.0
    ) -> None:
        """It failed a request sent at ``sent_at``, and asks to be left alone for ``wait`` seconds."""
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        self.trouble = trouble
        if busy and sent_at > self._cut_at:  # those sent before a cut tell nothing of the time after it
            self._limit = self._steady = max(1.0, min(self._limit, self.active + 1.0) * CUT)
            self._cut_at = now
        if self.down and probe:
            self._probes += 1
            pause = min(self._first_pause * 2.0 ** min(self._probes - 1, 16), LONGEST_PROBE_PAUSE)
            self._probe_at = now + max(pause, wait)
        elif not self.down and self._failures >= DOWN_AFTER + self.active // 8:
            self.down, self._probes, self._probe_at = True, 0, now + wait
            self._steady = max(1.0, self._limit / 2)

    def probe_no_later(self, at: float) -> None:
        """Bring the next probe forward to ``at``."""
        self._probe_at = min(self._probe_at, at)

    def blame(self, at: float) -> float | None:
        """How much a failure at that time counts against its row; None while the server has answered nobody since."""
        if self._last_answer <= at:
            return None
        began, ended = self._outage
        return OUTAGE_BLAME if began <= at <= ended else 1.0
