"""The check stage: which generated texts are fit to learn from, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse.engine.check.content import echo_of, script_share
from obverse.engine.check.duplicates import Fingerprints, HeldOutIndex, make_index
from obverse.engine.check.mention import MentionMatcher
from obverse.engine.check.normalise import normalise
from obverse.engine.check.rows import Target, Targets, align, target_key, text_lists
from obverse.engine.check.settings import CheckSettings
from obverse.engine.records.schemas import CHECKS, require_columns

__all__ = ["Checker"]

Ids = npt.NDArray[np.int64]

_COMPLETE = (None, "stop", "given")


@dataclass(slots=True)
class _Verdict:
    """What the checks of one row by itself found; ``reason`` is the first that failed."""

    mention_recall: float | None = None
    num_chars: int | None = None
    prompt_echo: bool | None = None
    reason: str | None = None


class Checker:
    """Checks batches of texts against their targets, a held-out set and all texts kept before.

    The checks, in the order in which one gives a dropped row its reason: ``error`` (no text), ``truncated``,
    ``length``, ``echo``, ``script``, ``mention``, ``leak``, ``duplicate``. A text counts as a duplicate only of
    texts that passed every check themselves, so a bad text never drives out a good one; ``duplicate_of`` is
    therefore looked up only for rows that passed the rest.

    Feed batches in one fixed order (by id): the result depends on that order, not on where batches are cut.
    ``held_out`` has columns ``id, text`` and, for extraction, ``triplets``; ``aliases`` gives names by uri.
    """

    def __init__(
        self,
        settings: CheckSettings,
        *,
        held_out: pa.Table | None = None,
        aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.settings = settings
        self._matcher = MentionMatcher(aliases)
        self._kept = make_index(settings.near_duplicate)
        self._held_texts: HeldOutIndex | None = None
        self._held_targets: dict[int, int] = {}
        if held_out is not None and held_out.num_rows:
            self._hold_out(held_out)

    def _hold_out(self, held_out: pa.Table) -> None:
        require_columns(held_out, "id", "text", what="held-out")
        bodies, _, ids = text_lists(held_out)
        rows = [row for row, body in enumerate(bodies) if body]
        texts = [normalise(bodies[row] or "") for row in rows]
        self._held_texts = HeldOutIndex(self.settings.leak, ids[rows], texts)
        if self.settings.leak_targets:
            for own, target in zip(ids.tolist(), Targets(held_out), strict=True):
                if target is not None:
                    self._held_targets.setdefault(target_key(target), own)

    def check(self, targets: pa.Table, texts: pa.Table) -> pa.Table:
        """Check one batch; gives a table of schema CHECKS, a row for each row of ``texts`` and in its order.

        ``targets`` needs a row for every id of ``texts``, in any order. Raises `InputError` where one is missing
        or a triplet has no surface form.
        """
        wanted = Targets(align(targets, texts))
        bodies, finishes, ids = text_lists(texts)
        normalised = [normalise(body) if body is not None else "" for body in bodies]
        verdicts = [self._alone(*row) for row in zip(bodies, normalised, finishes, wanted, strict=True)]
        prints = Fingerprints(normalised)
        leak_of = self._leaks(bodies, wanted, prints, verdicts)
        duplicate_of = self._duplicates(ids, prints, verdicts)
        return _table(ids, verdicts, leak_of, duplicate_of)

    def replay(self, targets: pa.Table, texts: pa.Table, checks: pa.Table | None = None) -> None:
        """Bring the memory of kept texts to where it was after ``check`` of this batch, in a process started anew.

        With the batch's ``checks`` as they were written nothing is checked again: its kept texts are only entered.
        """
        if checks is None:
            self.check(targets, texts)
            return
        require_columns(checks, "id", "kept", what="checks")
        kept = set(checks.filter(checks["kept"])["id"].to_pylist())
        bodies, _, ids = text_lists(texts)
        rows = [row for row, own in enumerate(ids.tolist()) if own in kept]
        self._kept.insert_or_find(ids[rows], Fingerprints([normalise(bodies[row] or "") for row in rows]))

    def _alone(self, body: str | None, text: str, finish: str | None, target: Target | None) -> _Verdict:
        """The checks that need nothing but the row; ``text`` is ``body`` normalised."""
        if body is None:
            reason = finish if finish and finish.startswith("error") else "error: no text"
            return _Verdict(reason=reason)
        limits = self.settings
        num_chars = len(body.strip())
        echo = echo_of(body, text, target.triples if target else ())
        recall, mention = self._mention(text, target)
        failed: list[str] = []
        if limits.drop_truncated and finish not in _COMPLETE:
            failed.append(f"truncated: {finish}")
        if num_chars < limits.min_chars:
            failed.append(f"length: {num_chars} characters, at least {limits.min_chars}")
        if num_chars > limits.max_chars:
            failed.append(f"length: {num_chars} characters, at most {limits.max_chars}")
        if limits.drop_echo and echo is not None:
            failed.append(f"echo: {echo}")
        if limits.scripts and (share := script_share(body, limits.scripts)) < 0.5:
            failed.append(f"script: {share:.0%} of letters in {', '.join(limits.scripts)}")
        if mention is not None:
            failed.append(mention)
        return _Verdict(recall, num_chars, echo is not None, failed[0] if failed else None)

    def _mention(self, text: str, target: Target | None) -> tuple[float | None, str | None]:
        if target is None:
            return None, None
        total = len(target.entities)
        found = self._matcher.found(text, target.entities)
        enough = found >= self.settings.min_mention_recall * total - 1e-9
        return found / total, None if enough else f"mention: {found} of {total} entities"

    def _leaks(
        self,
        bodies: Sequence[str | None],
        targets: Sequence[Target | None],
        prints: Fingerprints,
        verdicts: Sequence[_Verdict],
    ) -> Ids:
        """Held-out ids that rows repeat (-1: none), by text or else by triplets; sets missing reasons."""
        leak_of = np.full(len(bodies), -1, np.int64)
        rows = np.array([row for row, body in enumerate(bodies) if body is not None], np.intp)
        if self._held_texts is not None and len(rows):
            leak_of[rows] = self._held_texts.find(prints.take(rows))
        by_text = leak_of >= 0
        if self._held_targets:
            for row in rows[~by_text[rows]].tolist():
                target = targets[row]
                if target is not None:
                    leak_of[row] = self._held_targets.get(target_key(target), -1)
        for row in np.flatnonzero(leak_of >= 0).tolist():
            what = "text" if by_text[row] else "triplets"
            verdicts[row].reason = verdicts[row].reason or f"leak: {what} of held-out row {leak_of[row]}"
        return leak_of

    def _duplicates(self, ids: Ids, prints: Fingerprints, verdicts: Sequence[_Verdict]) -> Ids:
        """Ids of kept texts that rows repeat (-1: none), and enter the others; sets missing reasons."""
        duplicate_of = np.full(len(ids), -1, np.int64)
        rows = np.array([row for row, verdict in enumerate(verdicts) if verdict.reason is None], np.intp)
        if len(rows):
            duplicate_of[rows] = self._kept.insert_or_find(ids[rows], prints.take(rows))
        for row in np.flatnonzero(duplicate_of >= 0).tolist():
            verdicts[row].reason = f"duplicate: of row {duplicate_of[row]}"
        return duplicate_of


def _table(ids: Ids, verdicts: Sequence[_Verdict], leak_of: Ids, duplicate_of: Ids) -> pa.Table:
    columns = {
        "id": ids,
        "mention_recall": pa.array([verdict.mention_recall for verdict in verdicts], pa.float32()),
        "num_chars": pa.array([verdict.num_chars for verdict in verdicts], pa.int32()),
        "prompt_echo": pa.array([verdict.prompt_echo for verdict in verdicts], pa.bool_()),
        "duplicate_of": pa.array(duplicate_of, mask=duplicate_of < 0),
        "leak_of": pa.array(leak_of, mask=leak_of < 0),
        "kept": pa.array([verdict.reason is None for verdict in verdicts], pa.bool_()),
        "reason": pa.array([verdict.reason for verdict in verdicts], pa.string()),
    }
    return pa.table(columns, schema=CHECKS)
