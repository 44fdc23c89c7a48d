"""Shards: whole or absent, the same bytes for the same table, damage named."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obverse.engine.errors import InputError, RunError
from obverse.engine.records.keys import content_hash, derive_seed
from obverse.engine.records.linearise import Triple, linearise, parse
from obverse.engine.records.schemas import CHECKS, TARGETS
from obverse.engine.records.shards import Shards, atomic_write, read_json, write_json

SCHEMA = pa.schema([pa.field("id", pa.int64()), ("text", pa.string())])


def _table(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "text": [f"row {i}" for i in ids]}, schema=SCHEMA)


def test_shards_come_back_in_order_whatever_the_order_of_writing(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "stage", SCHEMA)
    assert shards.done() == []
    assert shards.table().num_rows == 0
    shards.write(2, _table(4, 5))
    shards.write(0, _table(0, 1))
    assert shards.done() == [0, 2]
    assert shards.num_rows() == 4
    assert shards.table(["id"])["id"].to_pylist() == [0, 1, 4, 5]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Shards(tmp_path / name, SCHEMA).write(0, _table(*range(1000)))
    assert (tmp_path / "a/part-00000.parquet").read_bytes() == (tmp_path / "b/part-00000.parquet").read_bytes()


def test_a_failed_write_leaves_nothing_and_a_stale_temporary_file_is_no_shard(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "x.json", fail)
    assert list(tmp_path.iterdir()) == []
    stale = tmp_path / f".part-00003.parquet.{os.getpid()}.tmp"
    stale.write_text("torn")
    assert Shards(tmp_path).done() == []
    assert not stale.exists()


def test_damage_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path, SCHEMA)
    shards.write(0, _table(1))
    path = shards.path(0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"part-00000.parquet is damaged.*delete it"):
        shards.table()
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        read_json(tmp_path / "a.json")


def test_missing_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="columns"):
        Shards(tmp_path, CHECKS).write(0, _table(1))


def test_targets_schema_refuses_null_ids() -> None:
    assert not TARGETS.field("id").nullable


def test_seeds_depend_on_every_part() -> None:
    seeds = {derive_seed(s, stage, i) for s in range(5) for stage in ("a", "b") for i in range(50)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="[]", exclude_categories=("C", "Z")), min_size=1)
TRIPLES = st.lists(st.builds(Triple, NAMES, NAMES, NAMES), unique=True, max_size=6)


@given(TRIPLES)
def test_linearisations_read_back(triples: list[Triple]) -> None:
    assert parse(linearise(triples)) == triples
    collapsed = linearise(triples, "subject_collapsed")
    assert parse(collapsed, "subject_collapsed") == triples
    assert len(collapsed) <= len(linearise(triples))


def test_synthie_example_reads_back() -> None:
    text = "[s] Scopus [r] owned by [o] Elsevier [r] country [o] Netherlands [e] [s] Elsevier [r] owns [o] Scopus [e]"
    triples = parse(text, "subject_collapsed")
    assert triples[1] == Triple("Scopus", "country", "Netherlands")
    assert linearise(triples, "subject_collapsed") == text
    assert parse("[s] A [r] b [o] C [e] [s] D [r] e") == [Triple("A", "b", "C")]
