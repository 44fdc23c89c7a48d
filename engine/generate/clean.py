"""Text that a model wrote, fit for Parquet, terminals and tables."""

from __future__ import annotations

import re

__all__ = ["clean_text"]

# Characters of control but tab, line feed and carriage return, and halves of surrogate pairs.
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def clean_text(text: str) -> str:
    """``text`` as UTF-8 can hold it, and as a terminal and a table can show it.

    Surrogates that belong together become their character, others U+FFFD; characters of control are taken out (those
    that count as blank become a blank) but tab, line feed and carriage return.
    """
    if text.isprintable() or not _UNWANTED.search(text):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _UNWANTED.sub(lambda found: " " if found[0].isspace() else "", text)
