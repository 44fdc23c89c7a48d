"""One function for all nearest-neighbour engines, so that another slots in beside those of FAISS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity import faiss
from obverse.engine.diversity.settings import ScoreSettings

__all__ = ["Choice", "candidates", "choose"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that runs, why, and with what parameters."""

    index: str
    reason: str
    parameters: dict[str, int]


def choose(settings: ScoreSettings, rows: int) -> Choice:
    """The engine for ``rows`` rows."""
    if settings.index != "auto":
        name, reason = settings.index, "asked for by name"
    elif rows <= settings.flat_limit:
        name, reason = "flat", f"{rows:,} rows are within flat_limit ({settings.flat_limit:,}): exact search"
    else:
        name, reason = "ivf", f"{rows:,} rows are above flat_limit ({settings.flat_limit:,})"
    if name == "ivf":
        lists = faiss.ivf_lists(rows)
        return Choice(name, reason, {"lists": lists, "probes": min(settings.probes, lists)})
    return Choice(name, reason, {})


def candidates(
    choice: Choice, base: npt.NDArray[np.float32], k: int, *, seed: int, on_rows: Callable[[int], None]
) -> npt.NDArray[np.int64]:
    """Indices ``[N, k]`` of rows likely nearest to each row of unit vectors ``base [N, D]``.

    The contract of an engine: each row of the answer holds distinct indices, in any order, the row's own index
    among them or not, -1 where it found fewer. Similarities are computed again from the vectors by the caller, so
    an engine may work in any precision. ``k <= N``. ``on_rows`` is called with numbers of rows newly done.
    """
    if choice.index == "flat":
        return faiss.search_flat(base, k, on_rows)
    if choice.index == "ivf":
        return faiss.search_ivf(base, k, choice.parameters["probes"], seed, on_rows)
    return faiss.search_hnsw(base, k, on_rows)
