"""Written texts, judged: what is not a text, not what was asked for, or a refusal is tried again, then an error.

The judge sees every row, so that what nobody asked for costs nothing: no rule where nothing can be rejected.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from obverse.engine.generate.clean import clean_text
from obverse.engine.generate.extract import extraction
from obverse.engine.generate.protocol import Completion
from obverse.engine.generate.structured import structure_check
from obverse.engine.generate.window import RetryRule

if TYPE_CHECKING:
    from obverse.engine.generate.settings import GenerateSettings

__all__ = ["is_refusal", "retry_rule"]

# How models that follow instructions open a refusal. Short on purpose: a text that is taken for one is lost, and
# "I can't help but smile" is none.
_REFUSAL = re.compile(
    r"""
    (?: as\ an?\ (?: ai | artificial\ intelligence | (?:large\ )?language\ model ) \b
      | (?: (?: i\ (?:sincerely\ )?apologi[sz]e | (?:i['’]?m\ |i\ am\ )?(?:so\ |very\ |really\ )?sorry
              | my\ apologies | unfortunately ) [,.]?\ (?:but\ |however,?\ )? )?
        i(?:['’]?m|\ am)?\ (?: can(?:['’]?t|not|\ not) | won['’]?t | unable\ to | not\ able\ to | must\ decline\ to
                             | will\ not )\ (?:\w+ly\ )?
        (?: (?:assist|help)\ (?:you\ )?with\ (?:that|this|your|the|any|such|creating|writing|generating) \b
          | (?:comply|engage)\ with \b
          | fulfill?\ (?:that|this|your|the) \b
          | (?:create|write|generate|produce|provide)\ (?:that|this|such|content|(?:a|the|any)\ (?:text|passage)) \b )
    )""",
    re.VERBOSE | re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether ``text`` opens as a model's refusal to write it."""
    return _REFUSAL.match(text) is not None


def retry_rule(settings: GenerateSettings) -> RetryRule | None:
    """What becomes of each written row; None where nothing could be rejected or changed.

    Raises what `structure_check` does.
    """
    output = settings.output
    judge = _Judge(settings)
    if not (judge.structure or judge.extract or judge.refusal or judge.empty or judge.length):
        return None
    only_empty = judge.empty and not (judge.structure or judge.extract or judge.refusal or judge.length)
    return RetryRule(_written if only_empty else judge, output.attempts, output.retry_share)


def _written(completion: Completion) -> tuple[Completion, str | None]:
    """The judge where only an empty text is rejected."""
    if completion.text or completion.text is None:
        return completion, None
    return _rejected(completion, "empty: the model wrote nothing")


class _Judge:
    """The checks of one setting, cheapest first."""

    def __init__(self, settings: GenerateSettings) -> None:
        output = settings.output
        self._retried = frozenset(output.retry_on)
        self.structure = structure_check(output.structured) if output.structured else None
        self.extract = extraction(output.extract) if output.extract else None
        self.empty, self.length = "empty" in self._retried, "length" in self._retried
        # A text that continues facts is no answer, so it can't be a refusal.
        continues = settings.prompt == "facts" or (settings.prompt == "auto" and settings.model == "demo")
        self.refusal = "refusal" in self._retried and not continues

    def __call__(self, completion: Completion) -> tuple[Completion, str | None]:
        """See `window.RetryRule`."""
        if completion.text is None:
            return completion, None
        text, why = self._judged(clean_text(completion.text), completion.finish_reason)
        if why is not None:
            kept, why = _rejected(completion, why)
            return kept, why if why.split(":")[0] in self._retried else None
        if text != completion.text:
            completion = completion._replace(text=text)
        if self.length and completion.finish_reason == "length":
            return completion, "length"  # kept, should it be the last attempt
        return completion, None

    def _judged(self, text: str, finish_reason: str) -> tuple[str, str | None]:
        """The text as it is kept, and why it is rejected."""
        if self.empty and not text:
            return text, "empty: the model wrote nothing"
        if self.refusal and is_refusal(text):
            return text, f"refusal: {text[:80]}"
        if self.structure is not None and (why := self.structure(text)) is not None:
            return text, "structured: " + ("cut at max_tokens, " if finish_reason == "length" else "") + why
        if self.extract is not None:
            try:
                text = clean_text(self.extract(text))
            except ValueError as error:
                return text, f"extract: {error}"
            if self.refusal and is_refusal(text):
                return text, f"refusal: {text[:80]}"
        return text, None


def _rejected(completion: Completion, why: str) -> tuple[Completion, str]:
    why = clean_text(" ".join(why.split())[:300])
    return completion._replace(text=None, finish_reason=f"error: {why}"), why
