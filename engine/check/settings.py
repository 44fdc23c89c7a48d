"""Settings of the check stage."""

from __future__ import annotations

from typing import Literal

import pydantic

from obverse.engine.records.settings import StageSettings

__all__ = ["CheckSettings", "Script"]

Script = Literal[
    "latin", "greek", "cyrillic", "armenian", "georgian", "hebrew", "arabic", "ethiopic", "devanagari", "bengali",
    "gurmukhi", "gujarati", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai", "lao", "tibetan",
    "myanmar", "khmer", "mongolian", "hangul", "hiragana", "katakana", "han",
]  # fmt: skip


class CheckSettings(StageSettings):
    """What a generated text must be to be kept."""

    min_mention_recall: float = pydantic.Field(default=1.0, ge=0.0, le=1.0)
    """Least share of the target's entities that the text names, by name or alias (0 switches the check off)."""
    min_chars: int = pydantic.Field(default=10, ge=0)
    """Least length of a text in characters, outer white space aside."""
    max_chars: int = pydantic.Field(default=4000, ge=1)
    """Greatest length of a text in characters, outer white space aside."""
    drop_truncated: bool = True
    """Drop texts whose generation ended for any reason but an end of text."""
    drop_echo: bool = True
    """Drop texts that show markers of the prompt, control tokens, or the prompt's facts word for word."""
    scripts: tuple[Script, ...] = ()
    """Scripts in one of which at least half of a text's letters must be; empty takes any."""
    near_duplicate: float = pydantic.Field(default=0.8, ge=0.3, le=1.0)
    """Jaccard similarity of character 5-grams from which two texts are duplicates; 1.0 means equal texts only."""
    leak: float = pydantic.Field(default=0.8, ge=0.3, le=1.0)
    """The same threshold between a text and the held-out texts; 1.0 means equal texts only."""
    leak_targets: bool = True
    """Drop rows whose set of triplets is that of a held-out row, whatever their text."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> CheckSettings:
        if self.max_chars < self.min_chars:
            raise ValueError(f"max_chars ({self.max_chars}) is below min_chars ({self.min_chars})")
        return self
