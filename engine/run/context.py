"""What a stage of a run may see: its recipe, its folder, and the tables of the stages before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.recipe import Recipe
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.progress import Progress
from obverse.engine.records.shards import Shards, read_json

if TYPE_CHECKING:
    from obverse.engine.generate.throughput import Throughput
    from obverse.engine.graph.graph import KnowledgeGraph

__all__ = ["REAL", "SYNTHETIC", "Context", "Site", "Stage", "seeded_order"]

REAL, SYNTHETIC = "real", "synthetic"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    ``version`` goes up when the stage's results change for the same settings; ``settings`` gives the part of the
    recipe that the results depend on; ``run`` does the work and returns facts for the manifest and the report.
    """

    name: str
    version: int
    inputs: tuple[str, ...]
    settings: Callable[[Recipe], Any]
    run: Callable[[Context], dict[str, Any]]
    unit: str = "rows"


@dataclass
class Context:
    """A run in progress, seen from the stage ``stage``."""

    recipe: Recipe
    folder: Path
    progress: Progress
    stage: str = ""
    spent: Callable[[], None] = field(default=lambda: None)
    recorder: Throughput | None = None
    """Counts rows while they are written, for who watches; without one the generate stage makes its own."""

    @property
    def home(self) -> Path:
        """This stage's own folder."""
        return self.folder / self.stage

    def shards(self, stage: str, schema: pa.Schema | None = None, part: str = "") -> Shards:
        """The table that ``stage`` wrote (its sub-table ``part``)."""
        return Shards(self.folder / stage / part, schema)

    def facts(self, stage: str) -> dict[str, Any]:
        """The facts that a finished stage left."""
        path = self.folder / stage / "_stage.json"
        facts: dict[str, Any] = read_json(path)["facts"] if path.exists() else {}
        return facts

    def num_targets(self) -> int:
        """Targets of the whole run, whatever part of them is written here."""
        return Shards(self.folder / "sample").num_rows()

    def seed(self, purpose: str) -> int:
        """A seed for ``purpose`` that depends on the run's seed alone."""
        return derive_seed(self.recipe.seed, purpose)

    @functools.cached_property
    def graph(self) -> KnowledgeGraph:
        """The run's knowledge graph, from the copy that the graph stage wrote."""
        from obverse.engine.graph.graph import KnowledgeGraph

        return KnowledgeGraph.load(self.folder / "graph" / "tables")

    def rows(self, part: str) -> pa.Table:
        """Real rows of one split: ``checker``, ``selection`` or ``test`` (id, text, triplets, label)."""
        return self.shards("data", part=part).table()

    def kept(self, columns: list[str]) -> pa.Table:
        """Synthetic rows that passed every check, in id order, with ``columns`` of targets and texts."""
        checks = self.shards("check").table(["id", "kept"])
        ids = checks.filter(checks["kept"])["id"].combine_chunks()
        result = pa.table({"id": ids})
        for stage in ("sample", "generate"):
            table = self.shards(stage)
            wanted = [name for name in columns if name in table.read(table.done()[0]).column_names]
            rows = table.table(["id", *wanted])
            index = pc.index_in(ids, value_set=rows["id"].combine_chunks())
            for name in wanted:
                if name not in result.column_names:
                    result = result.append_column(name, rows[name].take(index))
        return result.select(["id", *[name for name in columns if name in result.column_names]])

    def synthetic_rows(self, *, test: bool) -> pa.Table:
        """Kept rows (id, text, triplets, label) for training, or the ones set aside as the synthetic test set."""
        rows = self.kept(["text", "triplets", "label"])
        count = min(self.recipe.data.synthetic_test_rows, rows.num_rows // 5)
        order = seeded_order(rows["id"].to_pylist(), self.seed("synthetic-test"))
        held = np.zeros(rows.num_rows, dtype=bool)
        held[order[:count]] = True
        return rows.filter(pa.array(held if test else ~held))


class Site(Protocol):
    """Where and how stages are carried out: other machines, a part of the rows. Without one: all, in this process."""

    def keys(self, keys: dict[str, str]) -> dict[str, str]:
        """The stages' keys here; other than ``keys`` where results are."""
        ...

    def carry_out(self, stage: Stage, context: Context) -> dict[str, Any]:
        """Do what ``stage.run(context)`` does, and return its facts."""
        ...


def seeded_order(ids: list[int], seed: int) -> list[int]:
    """Positions of ``ids`` in an order that depends on the ids and the seed, not on their positions."""
    keys = [derive_seed(seed, "order", row_id) for row_id in ids]
    return sorted(range(len(ids)), key=lambda i: (keys[i], ids[i]))
