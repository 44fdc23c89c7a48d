from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from obverse.engine.cli.metrics import metrics
from obverse.engine.diversity.coverage import label_coverage
from obverse.engine.diversity.mauve import mauve
from obverse.engine.diversity.ngram_metrics import compression_ratio, ngram_metrics
from obverse.engine.diversity.prdc import prdc
from obverse.engine.diversity.set_metrics import set_metrics
from obverse.engine.diversity.set_metrics_full import METRICS, DataSet, full_metrics
from obverse.engine.diversity.vectors import Rows
from obverse.engine.diversity.vendi import mean_cosine, vendi_score, vendi_scores
from obverse.engine.errors import InputError

TEXTS = ["the cat sat", "the cat ran off", "", None, "a dog, sat"]


def make(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    x, y = (generator.normal(size=(rows, 7)).astype(np.float16) for rows in (40, 30))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 7)
    pq.write_table(pa.table({"id": np.arange(40) * 3, "vector": flat}), folder / "x.parquet")
    np.save(folder / "y.npy", y)
    pq.write_table(pa.table({"id": range(5), "text": TEXTS}), folder / "texts.parquet")
    pq.write_table(pa.table({"id": range(4), "label": ["a", "b", "a", None]}), folder / "labels.parquet")
    (folder / "real.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))
    weights = pa.table({"id": np.arange(39, -1, -1) * 3, "weight": np.arange(40.0) + 1})
    pq.write_table(weights, folder / "weights.parquet")
    return x, y


def test_the_verb_writes_what_the_functions_give(tmp_path: Path) -> None:
    x, y = make(tmp_path)
    options = {
        "--vectors": "x.parquet",
        "--texts": "texts.parquet",
        "--labels": "labels.parquet",
        "--weights": "weights.parquet",
        "--real-vectors": "y.npy",
        "--real-texts": "real.jsonl",
        "-o": "out.json",
    }
    arguments = [part for name, file in options.items() for part in (name, str(tmp_path / file))]
    result = CliRunner().invoke(metrics, [*arguments, "-k", "3", "--buckets", "4", "--seed", "9"])
    assert result.exit_code == 0, result.output
    got = json.loads((tmp_path / "out.json").read_text())
    present = [text for text in TEXTS if text]
    vendi = vendi_scores(x)
    expected = {
        "n": 40.0,
        "vendi_q0.1": vendi[0.1],
        "vendi_q0.5": vendi[0.5],
        "vendi": vendi[1.0],
        "vendi_q2": vendi[2.0],
        "vendi_inf": vendi[math.inf],
        "vendi_weighted": vendi_score(x, weights=np.arange(40, 0, -1)),
        "mean_cosine": mean_cosine(x),
        **ngram_metrics(present),
        "compression_ratio": compression_ratio(present),
        **{f"label_{name}": value for name, value in label_coverage(pa.array(["a", "b", "a"])).items()},
    }
    assert got["set"] == expected
    assert got["real"]["vendi"] == vendi_score(y)
    assert got["real"]["distinct_1"] == ngram_metrics(TEXTS[:2])["distinct_1"]
    assert got["comparison"] == {**prdc(y, x, 3), "mauve": mauve(y, x, buckets=4, seed=9)}
    assert set(got["seconds"]) >= {"vendi", "real vendi", "n-grams", "compression", "prdc", "mauve"}
    assert re.search(rf"^vendi +{vendi[1.0]:.6g} +{vendi_score(y):.6g}$", result.output, re.M)
    assert re.search(rf"^precision +{got['comparison']['precision']:.6g}$", result.output, re.M)
    assert re.search(r"^vendi_weighted +[0-9.]+ +-$", result.output, re.M)


def test_what_is_skipped_or_absent_is_left_out(tmp_path: Path) -> None:
    x, y = make(tmp_path)
    data, real = DataSet(vectors=x, texts=["a b"]), DataSet(vectors=y[:3])
    got = full_metrics(data, real, skip=("vendi", "compression", "mauve"), k=3)
    assert got["set"] == {"n": 40.0, "mean_cosine": mean_cosine(x), "distinct_1": 1.0, "distinct_2": 1.0}
    assert got["comparison"] == {}  # k = 3 needs four rows
    assert "comparison" not in full_metrics(data, DataSet(texts=["a"]))
    assert full_metrics(DataSet(vectors=x[:1]), skip=METRICS) == {"set": {"n": 1.0}, "seconds": {}}
    with pytest.raises(InputError, match=r"field 'skip'.*saw 'vandi'"):
        full_metrics(data, skip=["vandi"])
    result = CliRunner().invoke(
        metrics, ["--texts", str(tmp_path / "real.jsonl"), "-o", str(tmp_path / "o.json"), "-q"]
    )
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "o.json").read_text())) == {"set", "seconds"}


def test_the_verb_names_what_is_wrong(tmp_path: Path) -> None:
    make(tmp_path)
    run = CliRunner().invoke
    out = ["-o", str(tmp_path / "o.json"), "-q"]
    assert "at least one of --vectors" in run(metrics, out).output
    assert (
        "--weights needs --vectors"
        in run(
            metrics, ["--texts", f"{tmp_path}/texts.parquet", "--weights", f"{tmp_path}/weights.parquet", *out]
        ).output
    )
    short = pq.read_table(tmp_path / "weights.parquet").slice(1)
    pq.write_table(short, tmp_path / "short.parquet")
    error = run(
        metrics, ["--vectors", f"{tmp_path}/x.parquet", "--weights", f"{tmp_path}/short.parquet", *out]
    ).exception
    assert isinstance(error, InputError)
    assert "short.parquet, field 'id': expected a weight for every vector, saw 'none for id 117'" in str(error)
    error = run(metrics, ["--texts", f"{tmp_path}/labels.parquet", *out]).exception
    assert "labels.parquet, field 'text'" in str(error)
    assert not (tmp_path / "o.json").exists()


def test_set_metrics_takes_rows_as_well_as_tables(tmp_path: Path) -> None:
    x, _ = make(tmp_path)
    table = pq.read_table(tmp_path / "x.parquet")
    texts = pq.read_table(tmp_path / "texts.parquet")
    got = set_metrics(Rows(np.arange(40), x), texts)
    assert got == set_metrics(table, texts)
    assert got["self_bleu"] == ngram_metrics([text for text in TEXTS if text])["self_bleu"]
    assert set_metrics(Rows(np.empty(0, np.int64), x[:0])) == {"n": 0.0}
