"""What a generation backend is: a stream of requests in, a stream of completions out, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from obverse.engine.generate.clean import clean_text

__all__ = ["Backend", "Completion", "Request", "failed", "finish"]


class Request(NamedTuple):
    """One row to write. ``id`` comes back on its completion; ``seed`` alone decides its random draws."""

    id: int
    prompt: str
    seed: int
    chat: bool
    """Whether the prompt is a user's message (put through the model's chat template, where it has one)."""
    group: int
    """The shard it belongs to: a backend that must batch never batches across groups."""


class Completion(NamedTuple):
    """What became of one request; ``text`` is None exactly when ``finish_reason`` is an error."""

    id: int
    text: str | None
    finish_reason: str
    """stop | length | error: MESSAGE"""
    num_prompt_tokens: int | None
    num_output_tokens: int | None


class Backend(Protocol):
    """A loaded model. Use from one thread; `close` gives its memory back."""

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Answer every request exactly once, in any order.

        Pulls from ``requests`` only as it has room, which bounds memory and lets an endless stream in. A
        row that can't be done yields a completion with an error; only a failure of the backend as a whole
        raises (`BackendError`). Closing the iterator drops what is in flight.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """For a run's manifest: backend, version, model, dtype, device, batch_invariant and more.

        ``batch_invariant`` is True where a row's bytes don't depend on its neighbours, False where they
        may, None where nobody can say (a server).
        """
        ...

    def close(self) -> None:
        """Free the model's memory and undo what loading it changed in this process. Safe to call twice."""
        ...


def failed(request: Request, message: str, num_prompt_tokens: int | None = None) -> Completion:
    """The completion of a row that could not be done, and why."""
    reason = " ".join(message.split())
    return Completion(request.id, None, f"error: {reason[:300]}", num_prompt_tokens, None)


def finish(request: Request, text: str, reason: str | None, prompt: int | None, output: int | None) -> Completion:
    """The completion of a row as an engine ended it; an end that is neither stop nor length is an error."""
    if reason in ("stop", "length"):
        # A character of several bytes may be cut in half at the end; engines differ in what they show of it.
        whole = clean_text(text.rstrip("\ufffd")).strip()
        return Completion(request.id, whole, reason, prompt, output)
    return failed(request, f"ended by {reason}", prompt)
