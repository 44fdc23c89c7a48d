from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from obverse.engine.embed import EmbedSettings, Encoder, open_encoder
from obverse.engine.embed.onnx import OnnxEncoder, export_onnx
from obverse.engine.embed.vllm import VllmEncoder
from obverse.engine.errors import InputError, MissingPackageError

TEXTS = ["the cat in the town", "a dog", "a large river says that the old bank is small and ten dogs", "the cat", "x"]


@pytest.fixture(scope="module")
def folder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("with_onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, folder)
    export_onnx(EmbedSettings(model=str(tiny_bert)), folder / "onnx" / "model.onnx")
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_onnx_gives_what_torch_gives(folder: Path, tiny_bert: Path, pooling: Any) -> None:
    encoder = open_encoder(EmbedSettings(model=str(folder), pooling=pooling, batch_size=2))
    assert isinstance(encoder, OnnxEncoder)  # `auto`, for the folder holds nothing else
    torch = Encoder(EmbedSettings(model=str(tiny_bert), dtype="float32", device="cpu", pooling=pooling))
    assert (encoder.dim, encoder.max_length) == (torch.dim, torch.max_length)
    told: list[int] = []
    # Two layers of sums of at most 128 products: their float32 roundings stay far below this.
    np.testing.assert_allclose(encoder.encode(TEXTS, on_progress=told.append), torch.encode(TEXTS), atol=3e-6)
    assert sum(told) == len(TEXTS)
    assert encoder.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()
    assert encoder.describe()["backend"] == "onnx"


def test_onnx_folders_that_are_none(folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx"):
        OnnxEncoder(EmbedSettings(model=str(tiny_bert), backend="onnx"))
    with pytest.raises(InputError, match="float32"):
        OnnxEncoder(EmbedSettings(model=str(folder), dtype="bfloat16"))
    shutil.copytree(folder, tmp_path / "cut")
    whole = (tmp_path / "cut" / "onnx" / "model.onnx").read_bytes()
    (tmp_path / "cut" / "onnx" / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.onnx: expected an ONNX model that can be loaded"):
        open_encoder(EmbedSettings(model=str(tmp_path / "cut")))


def test_missing_packages_are_named(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnx", "vllm"):
        monkeypatch.setitem(sys.modules, name, None)
    shutil.copytree(tiny_bert, tmp_path / "m")
    (tmp_path / "m" / "model.onnx").write_bytes(b"x")
    with pytest.raises(MissingPackageError, match=r"obverse\[onnx\]"):
        open_encoder(EmbedSettings(model=str(tmp_path / "m"), backend="onnx"))
    with pytest.raises(MissingPackageError, match=r"obverse\[onnx\]"):
        export_onnx(EmbedSettings(model=str(tiny_bert)), tmp_path / "m.onnx")
    with pytest.raises(MissingPackageError, match=r"obverse\[gpu\]"):
        VllmEncoder(EmbedSettings(backend="vllm"))


def test_vllm_is_called_as_its_api_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not vLLM itself: that its answers become unit vectors in order, and that its options are those asked for."""
    seen: dict[str, Any] = {}

    class LLM:
        def __init__(self, **options: Any) -> None:
            seen.update(options)
            self.model_config = SimpleNamespace(max_model_len=6, dtype="torch.bfloat16")

        def get_tokenizer(self) -> Any:
            return lambda texts, truncation, max_length: {"input_ids": [[len(t)] * max_length for t in texts]}

        def embed(self, prompts: list[dict[str, Any]], use_tqdm: bool) -> list[Any]:
            rows = [[3.0 * p["prompt_token_ids"][0], 4.0 * len(p["prompt_token_ids"])] for p in prompts]
            return [SimpleNamespace(outputs=SimpleNamespace(embedding=row)) for row in rows]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM))
    encoder = VllmEncoder(EmbedSettings(model="some/model", backend="vllm", batch_size=7, dtype="bfloat16", prefix="q"))
    assert (seen["runner"], seen["model"], seen["max_num_seqs"], seen["dtype"]) == (
        "pooling",
        "some/model",
        7,
        "bfloat16",
    )
    np.testing.assert_allclose(encoder.encode(["x" * 7])[0], [0.70710678, 0.70710678], atol=1e-7)
    assert encoder.encode(["a", "bbbb"]).shape == (2, 2)
    with pytest.raises(InputError, match="vLLM pools"):
        VllmEncoder(EmbedSettings(backend="vllm", pooling="cls"))
