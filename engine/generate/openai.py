"""Any OpenAI-compatible server over HTTP: bounded concurrency, back-off, an outage budget.

The key comes from OPENAI_API_KEY and goes into the Authorization header alone: it is struck out of every
text and message that comes back. Servers promise nothing about batch invariance; a seed is sent all the same.
"""

from __future__ import annotations

import difflib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from obverse.engine.errors import BackendError, MissingPackageError, RecipeError
from obverse.engine.generate.protocol import Completion, Request, failed, finish
from obverse.engine.generate.settings import GenerateSettings

__all__ = ["OpenAIBackend"]

CONCURRENCY = 32
LONGEST_PAUSE = 60.0  # seconds
# Status codes of a server that is busy or failing; any other code of 400 or more is the row's fault.
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# The whole set-up is wrong: no row can succeed.
FATAL = frozenset({401, 403, 404, 405})


@dataclass(frozen=True)
class _Options:
    """What ``generate.engine`` may hold for this backend, in seconds and counts."""

    timeout: float = 300.0
    outage_budget: float = 600.0
    max_attempts: int = 8
    first_pause: float = 1.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class _MalformedError(Exception):
    """An answer of status 200 that is not a completion."""


class OpenAIBackend:
    """A client of one server; rows are requests on a pool of threads.

    A row that fails by itself (a 4xx, or ``max_attempts`` failures while other rows succeed) is an error row.
    A server that answers nobody pauses the run; after ``outage_budget`` seconds without one success,
    `BackendError` (or, where only the last few rows are left of a run that went well and the server still
    sends error codes, error rows: those rows are its trouble).
    """

    def __init__(self, settings: GenerateSettings) -> None:
        try:
            import openai
        except ImportError as error:
            needed_for = "generate.backend = 'openai'"
            raise MissingPackageError("openai", needed_for=needed_for, extra="openai") from error
        known = tuple(_Options.__dataclass_fields__)
        for name in settings.engine:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else "; put a server's own fields in extra_body"
                raise RecipeError(f"generate.engine: the openai backend takes no argument '{name}'{hint}")
        self._settings, self._options = settings, _Options(**settings.engine)
        self._key = os.environ.get("OPENAI_API_KEY", "")
        self._concurrency = settings.concurrency or CONCURRENCY
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=self._key or "none",  # local servers ask for none, but the client insists on one
            max_retries=0,
            timeout=self._options.timeout,
        )
        self._closing = threading.Event()
        self._last_success = time.monotonic()
        self._succeeded = False  # whether any row ever did
        self._tail = False  # whether every row has been asked for, so that few are left

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Answer requests as the server does; see `protocol.Backend`."""
        self._last_success, self._tail = time.monotonic(), False
        pending: set[Future[Completion]] = set()
        more = True
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="obverse-openai")
        try:
            while pending or more:
                while more and len(pending) < self._concurrency:
                    request = next(requests, None)
                    if request is None:
                        more, self._tail = False, True
                    else:
                        pending.add(pool.submit(self._answer, request))
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            # Only an early end finds anything to interrupt: a normal one has nothing pending.
            if pending:
                self._closing.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._closing.clear()

    def facts(self) -> dict[str, Any]:
        """See `protocol.Backend`. The address is given without user, password and query."""
        import openai

        return {
            "backend": "openai",
            "version": openai.__version__,
            "model": self._settings.model,
            "base_url": _plain_address(str(self._settings.base_url)),
            "dtype": None,
            "device": None,
            "batch_invariant": None,
            "concurrency": self._concurrency,
        }

    def close(self) -> None:
        """See `protocol.Backend`."""
        self._closing.set()
        self._client.close()

    def _answer(self, request: Request) -> Completion:
        """One row, tried until it succeeds, fails by itself, or the server has been gone too long."""
        attempt = counted = 0
        previous = 0.0
        while True:
            attempt += 1
            before = time.monotonic()
            trouble, asked = self._try(request)
            if isinstance(trouble, Completion):
                self._last_success = time.monotonic()
                self._succeeded = True
                return trouble
            # Only a failure after another row's success speaks against the row; an outage is nobody's fault.
            counted += attempt == 1 or previous < self._last_success < before
            previous = before
            if counted >= self._options.max_attempts:
                return failed(request, f"{trouble} ({attempt} attempts)")
            pause = max(min(self._options.first_pause * 2.0 ** min(attempt - 1, 16), LONGEST_PAUSE), asked)
            if time.monotonic() + pause - self._last_success > self._options.outage_budget:
                if self._tail and self._succeeded and trouble.startswith("HTTP "):
                    return failed(request, f"{trouble} ({attempt} attempts)")
                self._give_up(trouble)
            if self._closing.wait(pause):
                raise BackendError("the run was stopped")

    def _give_up(self, trouble: str) -> NoReturn:
        address, budget = _plain_address(str(self._settings.base_url)), self._options.outage_budget
        raise BackendError(f"no answer from {address} for {budget:g} s (outage_budget); last: {trouble}")

    def _try(self, request: Request) -> tuple[Completion | str, float]:
        """The row's completion, or what went wrong for now and the seconds that the server asks us to wait."""
        import openai

        try:
            return self._send(request), 0.0
        except openai.APIStatusError as error:
            code, message = error.status_code, self._clean(f"HTTP {error.status_code}: {error.message}")
            if code in FATAL:
                raise BackendError(f"the server refuses every request: {message}") from None
            if code not in TRANSIENT:
                return failed(request, message), 0.0
            return message, _retry_after(error.response.headers)
        except (openai.APIError, _MalformedError, ValueError, AttributeError) as error:
            # No connection, a time-out, or an answer that is not JSON: transient until shown otherwise.
            # `from None` and our own words throughout: a chained error would carry the request and its key.
            return self._clean(f"{type(error).__name__}: {error}"), 0.0

    def _send(self, request: Request) -> Completion:
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": request.seed,
            "extra_body": dict(self._options.extra_body) or None,
        }
        if request.chat:
            messages = [{"role": "user", "content": request.prompt}]
            if settings.system:
                messages.insert(0, {"role": "system", "content": settings.system})
            answer = self._client.chat.completions.create(messages=messages, **body)
        else:
            answer = self._client.completions.create(prompt=request.prompt, **body)
        choices = getattr(answer, "choices", None)
        if not choices:
            raise _MalformedError("the answer has no choices")
        choice, usage = choices[0], getattr(answer, "usage", None)
        text = choice.message.content if request.chat else choice.text
        if not isinstance(text, str):
            return failed(request, f"no text (finish_reason {self._clean(str(choice.finish_reason))})")
        return finish(
            request,
            self._clean(text),
            None if choice.finish_reason is None else self._clean(str(choice.finish_reason)),
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for (a number or an HTTP date); 0 without one."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 3600.0)


def _plain_address(url: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
