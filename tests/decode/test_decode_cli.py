"""`obverse decode` with a catalogue and rules: what comes out obeys them, and mistakes are named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from obverse.engine.cli.main import main
from obverse.engine.decode.catalog import Catalog
from obverse.engine.records.models import load_tokenizer
from obverse.engine.records.schemas import TRIPLETS
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.train.settings import TrainSettings
from obverse.engine.train.trainer import train_model

TYPES = {
    "Oslo": "city",
    "Lima": "city",
    "Norway": "country",
    "Peru": "country",
    "Paris": "city",
    "Paris Hilton": "person",
}
RELATIONS = ["capital of", "twinned with", "born in"]


@pytest.fixture(scope="module")
def extractor(wild_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hardly trained: left free it writes anything."""
    folder = tmp_path_factory.mktemp("extractor") / "model"
    empty = pa.table({"id": [0], "text": ["Oslo."], "triplets": pa.array([[]], TRIPLETS)})
    settings = TrainSettings(model=str(wild_llama), epochs=1, learning_rate=1e-6, form="subject_collapsed")
    train_model(empty, settings, task="extraction", method="ce", seed=0, out=folder)
    return folder


@pytest.fixture
def here(extractor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = pa.table({"name": list(TYPES), "uri": [f"Q{i}" for i in range(6)], "types": [[t] for t in TYPES.values()]})
    relations = pa.table({"name": RELATIONS, "uri": ["P1", "P2", "P3"]})
    Catalog.build(names, relations, SequenceFormat(load_tokenizer(extractor))).save(tmp_path / "names.catalog")
    texts = ["Oslo is the capital of Norway.", "Lima lies in Peru.", "Paris Hilton was in Paris, not in Oslo."]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    (tmp_path / "types.json").write_text(json.dumps({"capital of": [["city"], ["country"]], "P3": [["person"], []]}))
    (tmp_path / "known.tsv").write_text("Oslo\tcapital of\tNorway\nOslo\ttwinned with\tLima\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decode(extractor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    command = ["obverse", "decode", str(extractor), "rows.jsonl", "-o", "out.parquet", "--quiet", *options]
    command += ["--max-new-tokens", "60", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", command)
    try:
        main()
    except SystemExit as stop:
        return capsys.readouterr().err if stop.code else _facts()
    return _facts()


def _facts() -> list[list[tuple[str, str, str]]]:
    rows = pq.read_table("out.parquet")["predicted"].to_pylist()
    return [[tuple(t[r]["surfaceform"] for r in ("subject", "predicate", "object")) for t in row] for row in rows]


def test_rules_hold(
    here: Path, extractor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decode(extractor, capsys, monkeypatch, "--catalog", "names.catalog")
    assert any(plain)
    typed = decode(
        extractor, capsys, monkeypatch, "--catalog", "names.catalog", "--types", "types.json", "--unique",
        "--max-triplets", "2", "--only-mentioned",
    )  # fmt: skip
    assert typed != plain
    texts = [json.loads(line)["text"] for line in (here / "rows.jsonl").read_text().splitlines()]
    for text, facts in zip(texts, typed, strict=True):
        assert len(facts) <= 2
        for subject, relation, object_ in facts:
            assert subject in text
            assert object_ in text
            assert relation != "capital of" or (TYPES[subject], TYPES[object_]) == ("city", "country")
            assert relation != "born in" or TYPES[subject] == "person"
    only = decode(extractor, capsys, monkeypatch, "--catalog", "names.catalog", "--only-in", "known.tsv")
    known = {("Oslo", "capital of", "Norway"), ("Oslo", "twinned with", "Lima")}
    assert {fact for facts in only for fact in facts} <= known
    novel = decode(extractor, capsys, monkeypatch, "--catalog", "names.catalog", "--not-in", "known.tsv")
    assert not {fact for facts in novel for fact in facts} & known


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--only-in", "known.tsv"], "a graph or a catalog of names"),
        (["--catalog", "names.catalog", "--graph", "known.tsv"], "one of graph and catalog"),
        (
            ["--catalog", "names.catalog", "--only-in", "known.tsv", "--not-in", "known.tsv"],
            "one of only_in and not_in",
        ),
        (["--catalog", "rows.jsonl"], "rows.jsonl"),
        (["--catalog", "names.catalog", "--types", "rows.jsonl"], "rows.jsonl: expected JSON"),
        (["--catalog", "names.catalog", "--types", "bad.json"], "field 'capital of': expected [[SUBJECT TYPE, ...]"),
    ],
)
def test_mistakes_are_named(
    here: Path,
    extractor: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: str,
) -> None:
    (here / "bad.json").write_text('{"capital of": ["city"]}')
    said = decode(extractor, capsys, monkeypatch, *options)
    assert isinstance(said, str), said
    assert expected in said
    assert "Traceback" not in said
