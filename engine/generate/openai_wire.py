"""What goes to an OpenAI-compatible server as JSON and what its answers mean. Answers are hostile until read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from obverse.engine.generate.openai_http import NoAnswer, Reply, Secrets
from obverse.engine.generate.openai_options import check_fields
from obverse.engine.generate.protocol import Completion, Request, failed, finish
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.structured import openai_fields

__all__ = ["Failure", "Wire", "valid_text"]

CHAT, PLAIN = "/chat/completions", "/completions"
MESSAGE_CHARACTERS = 240
# No row can succeed until a person has changed something: refused key, nothing to pay with, no such model or path.
FATAL = frozenset({401, 402, 403, 404, 405, 407, 501})
# Below 500, what waiting may cure; any other code of 400 or more is the row's own fault.
TRANSIENT = frozenset({408, 409, 425, 429})
BUSY = frozenset({408, 429, 502, 503, 504, 529})
# What servers other than OpenAI's call the two ends of a text.
ENDS = {"eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class Failure(NamedTuple):
    """An attempt that brought no answer for the row."""

    kind: Literal["failed", "busy", "unsent", "fatal"]
    """unsent: the server never saw it; fatal: no row can succeed."""
    message: str
    retry_after: float = 0.0


class Wire:
    """Requests as bytes, answers as completions."""

    def __init__(self, settings: GenerateSettings, extra_body: Mapping[str, Any], secrets: Secrets) -> None:
        """Raises `RecipeError` where ``sampling.extra`` holds what can't be sent."""
        self._settings, self._extra, self._secrets = settings, dict(extra_body), secrets
        check_fields(settings.sampling.extra, "generate.sampling.extra")
        sampling, structured = settings.sampling, settings.output.structured
        self._common: dict[str, Any] = {
            "model": settings.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **({"stop": sampling.stop} if sampling.stop else {}),
            **({} if structured is None else openai_fields(structured)),
            **sampling.extra,
        }

    def body(self, request: Request, **more: Any) -> tuple[str, bytes]:
        """The path below the base URL and the JSON that ask for one row; ``more`` goes over all else."""
        asked = self._common | {"seed": request.seed}
        if request.chat:
            messages = [{"role": "user", "content": request.prompt}]
            if self._settings.system:
                messages.insert(0, {"role": "system", "content": self._settings.system})
            asked["messages"] = messages
        else:
            asked["prompt"] = request.prompt
        body = json.dumps(asked | self._extra | more, ensure_ascii=False, separators=(",", ":"))
        return CHAT if request.chat else PLAIN, body.encode("utf-8", "replace")

    def read(self, request: Request, reply: Reply | NoAnswer) -> Completion | Failure:
        """The row's completion (an error row where the fault is its own), or why it must be tried again."""
        if isinstance(reply, NoAnswer):
            kind: Any = "fatal" if reply.final else "unsent" if not reply.sent else "failed"
            return Failure("busy" if reply.timed_out and reply.sent else kind, self.clean(reply.message))
        if 300 <= reply.status < 400:
            return Failure("fatal", f"HTTP {reply.status}: it sends requests elsewhere; set base_url to where it does")
        if reply.status >= 400:
            return self._refusal(request, reply)
        answer = _parsed(reply.body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            what = "is not JSON" if answer is None else "has no choices"
            return Failure("failed", self.clean(f"the answer {what}: {self._excerpt(reply.body)}"))
        return self._completion(request, choices[0], answer.get("usage"))

    def clean(self, text: str) -> str:
        """Words of a server for a message: no secret, one line, nothing that a terminal would obey."""
        # Struck before it is cut, so that no half of a secret is left at the end.
        text = " ".join(self._secrets.strike(valid_text(text)).split())
        return "".join(c if c.isprintable() else "\ufffd" for c in text[:MESSAGE_CHARACTERS])

    def _completion(self, request: Request, choice: Mapping[str, Any], usage: Any) -> Completion:
        message = choice.get("message")
        text = (message.get("content") if isinstance(message, dict) else None) if request.chat else choice.get("text")
        given = choice.get("finish_reason")
        reason = None if given is None else self.clean(str(given))
        if not isinstance(text, str):
            return failed(request, f"no text (finish_reason {reason})")
        prompt, output = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        return finish(request, self._secrets.strike(valid_text(text)), ENDS.get(reason or "", reason), prompt, output)

    def _refusal(self, request: Request, reply: Reply) -> Completion | Failure:
        message = self.clean(f"HTTP {reply.status}: {self._excerpt(reply.body)}")
        if reply.status in FATAL or (reply.status == 429 and b'"insufficient_quota"' in reply.body):
            return Failure("fatal", message)
        if reply.status in BUSY or reply.retry_after:
            return Failure("busy", message, reply.retry_after)
        if reply.status in TRANSIENT or reply.status >= 500:
            return Failure("failed", message)
        return failed(request, message)

    def _excerpt(self, body: bytes) -> str:
        """What a server says in an error's body: the message in its JSON, else the words of its page."""
        answer = _parsed(body)
        for name in ("error", "detail", "message"):
            if isinstance(answer, dict) and answer.get(name):
                answer = answer[name]
        if answer is not None:
            return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        # Struck before it is cut; and short, for a hostile page can make a pattern slow.
        page = self._secrets.strike(body[: 64 << 10].decode("utf-8", "replace"))[: 4 << 10]
        return re.sub(r"<[^<>]*>", " ", re.sub(r"(?is)<(style|script)\b.*?</\1>", " ", page)).strip() or "no message"


def valid_text(text: str) -> str:
    """The text as valid Unicode: halves of a surrogate pair are joined, a half alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parsed(body: bytes) -> Any:
    """The value that JSON holds; None for what is not JSON."""
    try:
        # Control characters inside strings, which JSON forbids and servers send, are let through.
        return json.loads(body.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens, where the server gave one that can be true."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else None
