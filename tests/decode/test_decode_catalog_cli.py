from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from obverse.engine.cli.main import main
from obverse.engine.decode.catalog import Catalog

NAMES = (
    "uri\tname\taliases\ttypes\n"
    "Q60\tNew York City\tNYC|Big Apple\tcity\n"
    "Q1384\tNew York\t\tstate\n"
    "Q90\tParis\t\tcity\n"
    "Q167646\tParis\t\tperson\n"
    "Q0\t \t\t\n"
    "Q7\ta [s] b\t\t\n"
    "Q8\ta\\  b\t\t\n"
)


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[str, str, int]:
    monkeypatch.setattr(sys, "argv", ["obverse", "catalog", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return said.out, said.err, code


@pytest.fixture
def built(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    (tmp_path / "names.tsv").write_text(NAMES)
    (tmp_path / "relations.txt").write_text("capital of\ncountry\n")
    out, err, code = run(
        capsys, monkeypatch, "build", tmp_path / "names.tsv", "--relations", tmp_path / "relations.txt",
        "--tokenizer", tiny_llama, "-o", tmp_path / "names.catalog", "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert code == 0, err
    first, _, card = out.partition("\n")
    assert "9 names and 2 relation names in" in first
    shown = json.loads(card)
    assert (shown["entities"], shown["relations"], shown["ambiguous_names"]) == (6, 2, 1)
    assert shown["dropped"] == {"contains a marker": 1, "empty": 1}
    assert shown["noted"] == {"white space normalised": 1}
    assert "catalog report" in err
    assert len(list((tmp_path / "cache").iterdir())) == 2
    return tmp_path / "names.catalog"


def test_info_and_check(built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, code = run(capsys, monkeypatch, "info", built)
    assert code == 0
    assert json.loads(out)["context"] == "marked"
    assert run(capsys, monkeypatch, "check", built)[0] == f"{built}: whole\n"
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    built.write_bytes(content)
    _, err, code = run(capsys, monkeypatch, "check", built)
    assert code == 1
    assert err.startswith(f"error: {built}: expected a whole catalogue file")


def test_find(built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, code = run(capsys, monkeypatch, "find", built, "Paris", "NYC", "country", "New York")
    assert code == 0
    tokens = " ".join(map(str, Catalog.open(built).entities.tokens_at(4)))
    lines = out.splitlines()
    assert lines[0] == f"Paris: entity, tokens {tokens}"
    assert lines[1:3] == ["  Q90  Paris  [city]", "  Q167646  Paris  [person]"]
    assert "  Q60  New York City  [city]" in lines
    assert any(line.startswith("country: relation") for line in lines)
    assert any(line.startswith("New York: entity") and "go on from it" in line for line in lines)
    out, _, code = run(capsys, monkeypatch, "find", built, "Lyon", "a [s] b", "--json")
    assert code == 1
    assert [json.loads(line) for line in out.splitlines()] == [
        {"name": "Lyon", "found": []},
        {"name": "a [s] b", "found": []},
    ]
    out, _, code = run(capsys, monkeypatch, "find", built, "Lyon", "a [s] b")
    assert out.splitlines() == ["Lyon: not in the catalogue", "a [s] b: not in the catalogue (contains a marker: Q7)"]


def test_report(built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, _ = run(capsys, monkeypatch, "report", built)
    assert out.splitlines() == [
        "kind\tname\turi\treason\tdetail\tkept",
        "entity\t\tQ0\tempty\t\tFalse",
        "entity\ta [s] b\tQ7\tcontains a marker\t\tFalse",
        "entity\ta\\\\ b\tQ8\twhite space normalised\ta\\\\  b\tTrue",
    ]
    target = built.with_name("report.jsonl")
    out, _, _ = run(capsys, monkeypatch, "report", built, "--dropped", "-o", target)
    assert "2 rows" in out
    assert [json.loads(line)["uri"] for line in target.read_text().splitlines()] == ["Q0", "Q7"]
    assert run(capsys, monkeypatch, "report", built, "-o", built.with_name("report.xlsx"))[2] == 2


def test_entities_alone_in_json(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("New_York\nOslo\n")
    out, err, code = run(
        capsys, monkeypatch, "build", tmp_path / "names.txt", "--tokenizer", tiny_llama, "--underscores",
        "--context", "json", "-o", tmp_path / "c", "--no-cache", "-q",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "2 names in" in out
    catalog = Catalog.open(tmp_path / "c")
    assert catalog.relations is None
    assert catalog.card["context"] == "json"
    assert catalog.entities.link(["New York"]) == ["New_York"]


def test_mistakes_are_said_plainly(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.jsonl").write_text('{"name": "Oslo"}\n{"name": 7}\n')
    common = ("-o", tmp_path / "c", "-q", "--no-cache")
    _, err, code = run(capsys, monkeypatch, "build", tmp_path / "names.jsonl", "--tokenizer", tiny_llama, *common)
    assert code == 1
    assert err == f"error: {tmp_path}/names.jsonl, row 2, field 'name': expected a string, saw 7\n"
    _, err, code = run(capsys, monkeypatch, "build", tmp_path / "names.jsonl", "--tokenizer", tmp_path / "x", *common)
    assert code == 1
    assert "expected a model folder" in err
    assert (
        run(capsys, monkeypatch, "build", tmp_path / "names.jsonl", "--tokenizer", "x", "--cache", "y", *common)[2] == 2
    )
    old = tmp_path / "old"
    old.mkdir()
    (old / "catalog.json").write_text("{}")
    _, err, code = run(capsys, monkeypatch, "info", old)
    assert (code, err.count("\n")) == (1, 1)
    assert "earlier version" in err
    out, _, code = run(capsys, monkeypatch, "build", "--help")
    assert code == 0
    assert "aliases" in out
