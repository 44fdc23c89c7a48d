"""A run handed on: the rows it kept, once each, and a card that tells the truth and does nothing."""

from __future__ import annotations

import gzip
import html
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from obverse.engine.cli.export import export
from obverse.engine.errors import RunError
from obverse.engine.recipe import Recipe, load_recipe
from obverse.engine.records.progress import Progress
from obverse.engine.records.shards import Shards, read_json
from obverse.engine.run import export as module
from obverse.engine.run.card import escaped, public_name
from obverse.engine.run.context import Context
from obverse.engine.run.driver import run_recipe
from obverse.engine.run.export import export_run

WORDS = ["warm", "dull", "sharp", "slow", "bright", "flat", "rich", "thin", "bold", "grim", "neat", "odd"]
HOSTILE = "</p><script>alert(1)</script> [a](http://x.y) ![i](z) `c` **b** | # h \x1b[31m \u202e ``` <!-- www.evil.com"


def _text(i: int) -> str:
    return f"A film that is {WORDS[i % 12]}, and {WORDS[(i * 5 + i // 12) % 12]}, of year {1900 + i}."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty brought texts with labels through the real driver, with weights; some dropped, ten kept out of training."""
    folder = tmp_path_factory.mktemp("export")
    texts = [_text(i) for i in range(60)]
    texts[0] = HOSTILE
    texts[7] = texts[8]  # a copy: one of them is dropped
    lines = [json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("".join(lines))
    real = [json.dumps({"text": f"Real: {_text(100 + i)}", "label": i % 2}) + "\n" for i in range(12)]
    (folder / "real.jsonl").write_text("".join(real))
    ids = [i for i in range(59, -1, -1) if i != 8]  # in another order than the rows
    vectors = pa.table({"id": ids, "vector": [[float(i), 1.0, 0.5 * i, 2.0] for i in ids]})
    pq.write_table(vectors, folder / "vectors.parquet")
    weights = pa.table({"id": ids, "weight": [0.5 * i for i in ids]})
    pq.write_table(weights, folder / "weights.parquet")
    (folder / "recipe.toml").write_text(
        'name = "films_1"\ntask = "classification"\nseed = 11\nshard_rows = 16\n'
        '[data]\nreal = "real.jsonl"\nchecker_rows = 4\nselection_rows = 2\nsynthetic_test_rows = 3\n'
        '[given]\ngenerate = "texts.jsonl"\nembed = "vectors.parquet"\nweigh = "weights.parquet"\n'
        "[check]\nnear_duplicate = 1.0\n[score]\nneighbours = 3\n"
    )
    recipe, text = load_recipe(folder / "recipe.toml", ["data.synthetic_test_rows=10"])
    return run_recipe(recipe, folder / "run", text=text, until="weigh", progress=Progress(quiet=True))


def _rows(folder: Path, split: str) -> pa.Table:
    return pyarrow.dataset.dataset(sorted((folder / "data").glob(f"{split}-*.parquet"))).to_table()


def _split(run: Path, *, test: bool) -> pa.Table:
    """What the run itself trains on, or keeps out of training."""
    recipe, _ = load_recipe(run.parent / "recipe.toml", ["data.synthetic_test_rows=10"])
    return Context(recipe, run, Progress(quiet=True)).synthetic_rows(test=test)


def test_the_splits_are_the_runs_own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Parquet.__init__, "__defaults__", (2000,))  # several files
    done = export_run(run, tmp_path / "out")
    kept = int(read_json(run / "check/_stage.json")["facts"]["kept"])
    assert 50 < kept < 60
    assert done.rows == {"train": kept - 10, "test": 10}
    assert len(list((done.folder / "data").glob("train-*.parquet"))) > 1
    for split, rows in (("train", _split(run, test=False)), ("test", _split(run, test=True))):
        written = _rows(done.folder, split)
        assert sorted(written["id"].to_pylist()) == sorted(rows["id"].to_pylist())
        for ours, theirs in zip(*(t.sort_by("id").to_pylist() for t in (written, rows)), strict=True):
            assert (ours["text"], ours["label"]) == (theirs["text"], theirs["label"])
            assert ours["weight"] == 0.5 * ours["id"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_rows_without_weights_or_a_test_split(run: Path, tmp_path: Path) -> None:
    done = export_run(run, tmp_path / "all", test_rows=0)
    assert set(done.rows) == {"train", "test"}
    assert done.rows["test"] == 0
    assert not list(done.folder.glob("data/test*"))
    assert "split: test" not in (done.folder / "README.md").read_text()
    assert export_run(run, tmp_path / "most", test_rows=10_000).rows["test"] == sum(done.rows.values()) // 5


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_other_forms_hold_the_same_rows(run: Path, tmp_path: Path, form: Any) -> None:
    export_run(run, tmp_path / "first")
    done = export_run(run, tmp_path / "out", form=form)
    for split in ("train", "test"):
        expected = _rows(tmp_path / "first", split).to_pylist()
        if form == "parquet":
            found = pq.read_table(done.folder / f"{split}.parquet").to_pylist()
        else:
            with gzip.open(done.folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as handle:
                found = [json.loads(line) for line in handle]
        assert found == expected
    assert not (done.folder / "data").exists()


@pytest.mark.parametrize("form", ["datasets", "parquet", "jsonl"])
def test_datasets_opens_it(run: Path, tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    done = export_run(run, tmp_path / "out", form=form)
    loaded = datasets.load_dataset(str(done.folder), cache_dir=str(tmp_path / "cache"))
    assert {split: loaded[split].num_rows for split in loaded} == done.rows
    assert loaded["train"][0]["text"]


def test_the_card_counts_what_there_is(run: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    done = export_run(run, tmp_path / "out", license="cc-by-4.0", languages=("en", "de"))
    card = (done.folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "cc-by-4.0"
    assert values["language"] == ["en", "de"]
    assert values["size_categories"] == ["n<1K"]
    assert values["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        }
    ]
    facts = read_json(run / "check/_stage.json")["facts"]
    assert f"| train | {done.rows['train']} |" in body
    assert f"Of 60 rows {facts['kept']} were kept." in body
    for reason, count in facts["dropped"].items():
        assert f"| {escaped(reason)} | {count} |" in body
    assert facts["dropped"]
    assert "near\\_duplicate | 1\\.0 |" in body
    assert "the run's is 11" in body
    assert "2303.04132" in body
    assert "2410.21526" in body
    assert "brought ready-made" in body


def test_hostile_text_is_shown_and_does_nothing(run: Path, tmp_path: Path) -> None:
    card = (export_run(run, tmp_path / "out").folder / "README.md").read_text()
    assert card.isprintable() or not [c for c in card if not c.isprintable() and c != "\n"]
    body = card.split("## A few rows")[1].split("## Citation")[0]
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body)
    assert set(re.findall(r"</?(\w+)", page)) == {"p", "ul", "li"}  # no markup of its own ...
    shown = html.unescape(page)
    for part in HOSTILE.split():
        assert part.replace("\x1b", "U+001B").replace("\u202e", "U+202E") in shown  # ... and all there to read
    assert "http:/" not in body  # nor what some renderers would make a link
    assert "www." not in body


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n- c", "a b - c"),
        ("\n- c-d", "\\- c-d"),
        ("=== x", "\\=== x"),
        ("v1.2 (a)", "v1.2 (a)"),
        ("see WWW.x.y or http://x", "see WWW\\.x.y or http\\://x"),
        ("    code", "code"),
        ("1. one", "1\\. one"),
        ("x\ud800y", "xU+D800y"),
        ("a​b", "aU+200Bb"),
        ("Ünïcode – naïve 東京 😀", "Ünïcode – naïve 東京 😀"),
        ("a|b\\", "a\\|b\\\\"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_escaping(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped("x" * 10, 4) == "xxxx …"


def test_no_secrets_and_no_paths(run: Path, tmp_path: Path) -> None:
    """A run whose recipe holds a key where none belongs, and a model in somebody's home."""
    folder = tmp_path / "run"
    for stage in ("sample", "generate", "check"):
        (folder / stage).mkdir(parents=True)
        for path in (run / stage).iterdir():
            (folder / stage / path.name).write_bytes(path.read_bytes())
    (folder / "run.json").write_bytes((run / "run.json").read_bytes())
    record = read_json(run / "generate/_stage.json")
    record["facts"]["backend"] = {
        "backend": "openai",
        "model": "/home/me/models/Tiny-1",
        "base_url": "http://k:SECRET@h/v1",
    }
    (folder / "generate/_stage.json").write_text(json.dumps(record))
    texts = Shards(folder / "generate")
    for index in texts.done():
        table = texts.read(index)
        place = table.column_names.index("model")
        texts.write(index, table.set_column(place, "model", pa.array(["/home/me/models/Tiny-1"] * table.num_rows)))
    (folder / "recipe.toml").write_text(
        'name = "n"\ntask = "classification"\n[generate]\nbackend = "openai"\nmodel = "/home/me/models/Tiny-1"\n'
        'base_url = "http://k:SECRET@h/v1"\nsystem = "see http://me:SECRET@h/"\n'
        '[generate.engine]\napi_key = "SECRET"\nextra_headers = {Authorization = "SECRET"}\nseed_style = "ok"\n'
    )
    done = export_run(folder, tmp_path / "out")
    card = (done.folder / "README.md").read_text()
    assert "SECRET" not in card
    assert "/home" not in card
    assert "home" not in card.replace("\\", "")
    assert "Tiny-1" in card
    assert "seed\\_style | ok" in card
    assert _rows(done.folder, "train")["model"].unique().to_pylist() == ["Tiny-1"]
    assert "weight" not in _rows(done.folder, "train").column_names


def test_names_of_models() -> None:
    assert public_name("/a/b/model/") == "model"
    assert public_name("~/model") == "model"
    assert public_name("C:\\models\\one") == "one"
    assert public_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


def test_a_licence_is_read_from_the_models_own_card(tmp_path: Path) -> None:
    from obverse.engine.run.card import _read_licence

    (tmp_path / "README.md").write_text("---\nlicense: 'mit'\ntags: [x]\n---\nlicense: no\n")
    assert _read_licence(tmp_path / "README.md") == "mit"
    (tmp_path / "README.md").write_text("# no front matter\nlicense: no\n")
    assert _read_licence(tmp_path / "README.md") is None


def test_what_is_no_finished_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json"):
        export_run(tmp_path, tmp_path / "out")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(RunError, match="not empty"):
        export_run(run, out)
    assert (out / "mine").read_text() == "x"
    half = tmp_path / "half"
    half.mkdir()
    (half / "run.json").write_bytes((run / "run.json").read_bytes())
    with pytest.raises(RunError, match="'sample' is not finished"):
        export_run(half, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_that_lacks_rows_is_told_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for stage in ("sample", "generate", "check"):
        (folder / stage).mkdir(parents=True)
        for path in (run / stage).iterdir():
            (folder / stage / path.name).write_bytes(path.read_bytes())
    for name in ("run.json", "recipe.toml"):
        (folder / name).write_bytes((run / name).read_bytes())
    Shards(folder / "generate").path(1).unlink()
    with pytest.raises(RunError, match="were kept but"):
        export_run(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_verb(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(export, [str(run), "-o", str(tmp_path / "out"), "-q"])
    assert done.exit_code == 0, done.output
    assert "test 10 rows" in done.output
    assert "hf upload --repo-type dataset" in done.output


def test_an_extraction_run(tmp_path: Path) -> None:
    def name(text: str) -> dict[str, str]:
        return {"surfaceform": text, "uri": f"u:{text}"}

    def row(i: int, kind: str) -> str:
        triplet = {"subject": name(f"{kind} {i}"), "predicate": name("country"), "object": name("Norland")}
        return json.dumps({"text": f"{kind} {i} is a place in Norland.", "triplets": [triplet]}) + "\n"

    (tmp_path / "texts.jsonl").write_text("".join(row(i, "Town") for i in range(20)))
    (tmp_path / "real.jsonl").write_text("".join(row(i, "Village") for i in range(10)))
    edges = "".join(f"Town {i}\tcountry\tNorland\n" for i in range(20))
    (tmp_path / "graph.tsv").write_text("subject\tpredicate\tobject\n" + edges)
    (tmp_path / "recipe.toml").write_text(
        'name = "places"\ntask = "extraction"\n[data]\nreal = "real.jsonl"\nchecker_rows = 4\nselection_rows = 2\n'
        f'[given]\ngenerate = "texts.jsonl"\n[sample]\ngraph = "{tmp_path / "graph.tsv"}"\n'
        "[check]\nnear_duplicate = 1.0\n"
    )
    recipe: Recipe
    recipe, text = load_recipe(tmp_path / "recipe.toml")
    run = run_recipe(recipe, tmp_path / "run", text=text, until="check", progress=Progress(quiet=True))
    done = export_run(run, tmp_path / "out")
    rows = _rows(done.folder, "train")
    assert rows.num_rows == 20
    assert rows["triplets"][3].as_py()[0]["subject"] == {"uri": "u:Town 3", "surfaceform": "Town 3"}
    assert pc.all(pc.equal(rows["id"], pa.array(range(20)))).as_py()
    assert "label" not in rows.column_names
    card = (done.folder / "README.md").read_text()
    assert "the graph graph.tsv" in card
    assert str(tmp_path) not in card
