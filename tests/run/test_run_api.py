"""The stages as plain functions, with data frames in and Arrow tables out, each fed by the one before."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import obverse
from obverse.engine.errors import InputError
from obverse.engine.records.schemas import CHECKS, SCORES, TARGETS, TEXTS, WEIGHTS


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    lands = ["France", "Norway", "Poland", "Japan"]
    cities = ["Lyon", "Oslo", "Radom", "Nara", "Nice", "Bergen", "Lublin", "Kobe"]
    edges = [f"{city}\tcountry\t{lands[i % 4]}" for i, city in enumerate(cities)]
    path = tmp_path / "triples.tsv"
    path.write_text("subject\tpredicate\tobject\n" + "\n".join(edges) + "\n")
    return path


def test_the_stages_chain_through_data_frames(graph_file: Path) -> None:
    targets = obverse.sample(graph_file, samples=8, seed=1, max_triplets=1)
    assert targets.schema.equals(TARGETS)
    assert targets["id"].to_pylist() == list(range(8))
    texts = obverse.generate(targets, seed=1, backend="transformers", sampling={"max_tokens": 32, "temperature": 0.0})
    assert texts.schema.equals(TEXTS)
    frame = texts.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    checks = obverse.check(targets, frame, min_mention_recall=0.0, drop_truncated=False)
    assert checks.schema.equals(CHECKS)
    vectors = obverse.embed(frame)
    assert vectors["vector"].type.list_size == 384
    scores = obverse.score(vectors, neighbours=3, recall_sample=0)
    assert scores.schema.equals(SCORES)
    assert {len(row) for row in scores["neighbour_ids"].to_pylist()} == {3}
    scored = pd.DataFrame({"id": [1, 2, 3], "log_quality": [-1.0, -2.0, -3.0], "log_diversity": [-1.0, -1.0, -1.0]})
    weights = obverse.weigh(scored)
    assert weights.schema.equals(WEIGHTS)
    assert sorted(weights["weight"].to_pylist(), reverse=True) == weights["weight"].to_pylist()


def test_unknown_settings_and_tables_without_a_column_are_named(graph_file: Path) -> None:
    with pytest.raises(InputError, match=r"max_triplet'.*known: .*max_triplets|known: .*max_triplets"):
        obverse.sample(graph_file, samples=3, max_triplet=2)
    with pytest.raises(InputError, match="'text'"):
        obverse.embed(pd.DataFrame({"id": [1], "body": ["x"]}))
    with pytest.raises(InputError, match="log_diversity"):
        obverse.weigh(pa.table({"id": [1], "log_quality": [0.0]}))
    with pytest.raises(InputError, match="data frame"):
        obverse.score(5)


def test_a_graph_loaded_once_serves_many_calls(graph_file: Path) -> None:
    graph = obverse.load_graph(graph_file)
    assert isinstance(graph, obverse.KnowledgeGraph)
    first = obverse.sample(graph, samples=4, seed=2)
    assert first.equals(obverse.sample(graph_file, samples=4, seed=2))
    assert not first.equals(obverse.sample(graph, samples=4, seed=3))
