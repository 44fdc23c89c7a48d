"""How fast are texts embedded on this processor, beside what one would call by default?

``python -m benchmarks.embedding [--quick] [--json] [--csv FILE]``, or ``pytest benchmarks/embedding.py``

all-MiniLM-L6-v2 over real texts: cut to 20 tokens each, and whole. Ours is `open_encoder` (8-bit on the C++ core where
the processor has VNNI) and the torch backend in bfloat16 and float32. Peers: ``sentence-transformers`` as it comes
(float32, batches of 32), ``transformers`` in float32 (batches of 64 in order of length, mean pooling by hand) and
``onnxruntime`` in float32 (our export). All start from strings, so tokenising counts. Nothing is timed whose vectors
stray from float32: a cosine below 0.999 for any text stops the benchmark. Peers that aren't installed are left out.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import OURS, Row, interleave, run_main, timing_rows
from obverse.engine.embed import EmbedSettings, Encoder, open_encoder
from obverse.engine.embed.folder import find_model
from obverse.engine.errors import MissingPackageError

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

Encode = Callable[[list[str]], Any]

TOKENS = 20
LEAST_COSINE = 0.999
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_texts(count: int, *, tokens: int | None) -> list[str]:
    """Different texts of the shared data, in a fixed random order; with ``tokens``, cut to so many."""
    found: dict[str, None] = {}
    for path in sorted(_DATA.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found |= {str(json.loads(line)["text"]): None for line in lines}
    texts = [text for text in found if text.strip()]
    if not texts:
        raise RuntimeError(f"no texts to embed: {_DATA} holds no *.jsonl.gz")
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = (texts[place] for place in order)
    return list(_first(shuffled, count)) if tokens is None else list(_first(_cut(shuffled, tokens), count))


def _first(texts: Iterator[str], count: int) -> Iterator[str]:
    for _, text in zip(range(count), texts, strict=False):
        yield text


def _cut(texts: Iterator[str], tokens: int) -> Iterator[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_model("minilm"))
    for text in texts:
        ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(ends) >= tokens - 2:
            yield text[: ends[tokens - 3][1]]


def ours() -> dict[str, Encode]:
    """Our encoders; the first is what a user gets by default."""
    found: dict[str, Encode] = {OURS: open_encoder(EmbedSettings(device="cpu")).encode}
    for dtype in ("bfloat16", "float32"):
        settings = EmbedSettings.model_validate({"device": "cpu", "backend": "torch", "dtype": dtype})
        found[f"obverse torch {dtype}"] = Encoder(settings).encode
    return found


def peers(folder: Path) -> dict[str, Encode]:
    """Those that are installed."""
    found: dict[str, Encode] = {"transformers float32": _transformers()}
    try:
        from sentence_transformers import SentenceTransformer

        found["sentence-transformers"] = SentenceTransformer(find_model("minilm"), device="cpu").encode
    except ImportError:
        print("sentence-transformers is not installed: left out")
    try:
        found["onnxruntime float32"] = _onnx(folder)
    except MissingPackageError as error:
        print(f"onnxruntime is left out: {error}")
    return found


def _transformers() -> Encode:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_model("minilm"))
    model = AutoModel.from_pretrained(find_model("minilm")).eval()

    def encode(texts: list[str]) -> Any:
        order = np.argsort([-len(text) for text in texts], kind="stable")
        result = np.empty((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                rows = order[start : start + 64]
                batch = tokenizer(
                    [texts[row] for row in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
                pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
                result[rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return result

    return encode


def _onnx(folder: Path) -> Encode:
    import shutil

    from obverse.engine.embed.onnx import OnnxEncoder, export_onnx

    shutil.copytree(find_model("minilm"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    export_onnx(EmbedSettings(), folder / "model.onnx")
    return OnnxEncoder(EmbedSettings(model=str(folder), backend="onnx")).encode


def check(cases: dict[str, Encode], texts: list[str]) -> Iterator[Row]:
    """The cosine of each case's vectors to float32 ones; raises where one is too low."""
    truth = cases["transformers float32"](texts)
    for name, encode in cases.items():
        cosines = (np.asarray(encode(texts)) * truth).sum(axis=1)
        if not cosines.min() >= LEAST_COSINE:
            raise RuntimeError(f"{name}: cosine {cosines.min():.5f} to float32, {LEAST_COSINE} is asked for")
        shape = f"{len(texts)} texts"
        yield Row("embedding", "MiniLM", name, shape, "least cosine to float32", float(cosines.min()), "")
        yield Row("embedding", "MiniLM", name, shape, "mean cosine to float32", float(cosines.mean()), "")


def measure(quick: bool) -> Iterator[Row]:
    """Texts of 20 tokens, then whole ones: cosines, seconds, texts a second."""
    count = 256 if quick else 2048
    with tempfile.TemporaryDirectory() as scratch:
        mine, others = ours(), peers(Path(scratch) / "minilm")
        cases = mine | others
        for op, tokens in ((f"MiniLM, {TOKENS} tokens", TOKENS), ("MiniLM, whole texts", None)):
            if quick and tokens is None:
                continue
            texts = real_texts(count, tokens=tokens)
            yield from (row._replace(op=op) for row in check(cases, texts))
            timed = {name: partial(encode, texts) for name, encode in cases.items()}
            timings = interleave(timed, repeats=3 if quick else 7, warmup=1)
            references = [name for name in mine if name != OURS]
            yield from timing_rows("embedding", op, f"{count} texts", timings, unit="s", references=references)
            for name, timing in timings.items():
                yield Row("embedding", op, name, f"{count} texts", "rate", count / timing.median, "texts/s")
            if "sentence-transformers" in timings:
                ratio = timings["sentence-transformers"].median / timings[OURS].median
                yield Row("embedding", op, OURS, f"{count} texts", "times sentence-transformers", ratio, "x")


def test_embedding_ours(benchmark: BenchmarkFixture) -> None:
    texts = real_texts(256, tokens=TOKENS)
    encode = open_encoder(EmbedSettings(device="cpu")).encode
    benchmark.pedantic(encode, (texts,), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]


def test_embedding_transformers(benchmark: BenchmarkFixture) -> None:
    texts = real_texts(256, tokens=TOKENS)
    benchmark.pedantic(_transformers(), (texts,), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]


PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime")

if __name__ == "__main__":
    raise SystemExit(run_main("embedding", measure, packages=PACKAGES))
