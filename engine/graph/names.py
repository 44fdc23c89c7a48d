"""Names that can be written between markers: one line, single spaces, no square brackets."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["clean_alias_lists", "clean_name", "has_brackets", "without_parentheses"]

# Control and format characters (zero-width space, direction marks, soft hyphen) are no part of a name; the zero-width
# joiner and non-joiner are: Persian and Indic spelling needs them.
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_UNCLEAN = (
    r"[\[\]\p{Cc}\p{Co}\x{ad}\x{61c}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{206f}\x{feff}]"
    r"|[\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]|^ | $|  |^$"
)
_PARENTHESES = re.compile(r"\s*[(][^()]*(?:[)]|$)")


def clean_name(name: str) -> str:
    """``name`` without invisible characters, every run of white space one space, ends stripped."""
    if name.isprintable() and "  " not in name and name[:1] != " " and name[-1:] != " ":
        return name  # nearly all names
    return " ".join(_INVISIBLE.sub("", name).split())


def has_brackets(name: str) -> bool:
    """Whether ``name`` holds ``[`` or ``]``: such a name can't be told from a linearisation's markers."""
    return "[" in name or "]" in name


def without_parentheses(name: str) -> str:
    """`clean_name` without parenthesised parts ("Modern Greek (1453-)" gives "Modern Greek").

    A name that is nothing but a parenthesis keeps it.
    """
    if "(" not in name:
        return clean_name(name)
    return clean_name(_PARENTHESES.sub("", name)) or clean_name(name)


def clean_alias_lists(names: pa.Array, aliases: pa.Array) -> pa.Array:
    """Alias lists without unclean aliases and without those equal to the row's own name.

    Args:
        names: ``[n]`` string.
        aliases: ``[n]`` list<string>, no null rows.

    Returns:
        ``[n]`` list<string>; order kept. An alias with brackets, invisible characters or odd spaces is dropped rather
        than repaired, since its clean spelling nearly always stands beside it.
    """
    values = aliases.flatten()
    parents = pc.list_parent_indices(aliases)
    own = pc.equal(values, pc.take(names, parents))
    drop = pc.or_(pc.fill_null(own, True), pc.fill_null(pc.match_substring_regex(values, _UNCLEAN), True))
    keep: np.ndarray[Any, Any] = ~drop.to_numpy(zero_copy_only=False)
    counts = np.bincount(parents.to_numpy()[keep], minlength=len(names))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values.filter(pa.array(keep)))
