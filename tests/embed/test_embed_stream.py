from __future__ import annotations

import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from obverse.engine.embed import EmbedSettings, Encoder, embed_files
from obverse.engine.embed.sources import TextSource
from obverse.engine.embed.stream import read_shard, scan
from obverse.engine.errors import InputError, RunError
from obverse.engine.records.schemas import vectors

WORDS = "the cat dog river town of in is large small old new north says that and zebra42 é"


def some_texts(count: int, seed: int | None = None) -> list[str]:
    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    print("seed", seed)
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    texts = [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(count)]
    for row in rng.choice(count, count // 5):  # some texts again, near and far
        texts[row] = texts[rng.integers(count)]
    return texts


def write_texts(path: Path, texts: Sequence[str], ids: Sequence[int] | None = None) -> Path:
    pq.write_table(pa.table({"id": range(len(texts)) if ids is None else ids, "text": list(texts)}), path)
    return path


def settings_of(model: Path, **more: Any) -> EmbedSettings:
    return EmbedSettings(model=str(model), backend="torch", dtype="float32", device="cpu", batch_size=8, **more)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in sorted(folder.glob("part-*"))}


class Counting:
    """An encoder that counts the texts it is given."""

    def __init__(self, settings: EmbedSettings) -> None:
        self.inner, self.settings, self.texts = Encoder(settings), settings, 0
        self.dim = self.inner.dim

    def encode(self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None) -> Any:
        self.texts += len(texts)
        assert len(set(texts)) == len(texts)
        return self.inner.encode(texts, on_progress=on_progress)

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()


def test_shards_hold_what_the_encoder_gives(tmp_path: Path, tiny_bert: Path) -> None:
    texts = some_texts(205)
    ids = np.random.default_rng(3).permutation(205) - 50
    source = write_texts(tmp_path / "texts.parquet", texts, ids)
    encoder = Counting(settings_of(tiny_bert))
    report = embed_files(source, tmp_path / "out", encoder.settings, shard_rows=50, encoder=encoder)
    assert (report.rows, report.dim, report.resumed, report.cached) == (205, 64, 0, 0)
    assert report.computed == encoder.texts == len(set(texts))
    assert report.repeated == 205 - len(set(texts))
    tables = []
    for part in sorted((tmp_path / "out").glob("part-*.arrow")):
        tables.append(pa.ipc.open_file(pa.memory_map(str(part))).read_all())
        assert tables[-1].schema == vectors(64)
    table = pa.concat_tables(tables)
    assert [t.num_rows for t in tables] == [50, 50, 50, 50, 5]
    assert table["id"].to_pylist() == ids.tolist()
    got = np.array(table["vector"].to_pylist(), np.float32)
    # A unit vector's float16 rounding: half a unit in the last place of values below 1 is 2^-12.
    np.testing.assert_allclose(got, encoder.inner.encode(texts), atol=2**-12 + 2e-6)
    seen: dict[str, bytes] = {}
    for text, row in zip(texts, got, strict=True):
        assert seen.setdefault(text, row.tobytes()) == row.tobytes()


def test_every_format_gives_the_same_bytes(tmp_path: Path, tiny_bert: Path) -> None:
    texts = some_texts(60)
    table = pa.table({"id": range(60), "text": texts})
    settings, encoder = settings_of(tiny_bert), Encoder(settings_of(tiny_bert))
    lines = "".join(
        json.dumps({"id": n, "text": text, "more": [n]}) + "\n" * (1 + n % 2) for n, text in enumerate(texts)
    )
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write(lines)
    pa.csv.write_csv(table, tmp_path / "a.csv")
    write_texts(tmp_path / "a.parquet", texts)
    for name, opener in (("a.arrow", pa.ipc.new_file), ("b.arrow", pa.ipc.new_stream)):
        with opener(tmp_path / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    (tmp_path / "folder").mkdir()
    for number, start in enumerate((0, 13, 40)):
        pq.write_table(table.slice(start, (13, 27, 20)[number]), tmp_path / "folder" / f"{number}.parquet")
    results = []
    names = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "a.arrow", "b.arrow", "folder"]
    for name in names:
        out = tmp_path / f"out-{name.replace('.', '-')}"
        embed_files(tmp_path / name, out, settings, shard_rows=25, encoder=encoder)
        results.append(shard_bytes(out))
    for name, result in zip(names, results, strict=True):
        assert result == results[0], name
    assert len(results[0]) == 3


def test_a_parquet_file_holds_the_same(tmp_path: Path, tiny_bert: Path) -> None:
    source = write_texts(tmp_path / "texts.parquet", some_texts(45))
    settings = settings_of(tiny_bert, precision="float32")
    embed_files(source, tmp_path / "out", settings, shard_rows=20)
    embed_files(source, tmp_path / "out.parquet", settings, shard_rows=20)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema == vectors(64, pa.float32())
    shards = [read_shard(part) for part in sorted((tmp_path / "out").glob("part-*"))]
    np.testing.assert_array_equal(
        np.array(table["vector"].to_pylist(), np.float32), np.concatenate([v for _, v in shards])
    )
    assert table["id"].to_pylist() == list(range(45))
    assert not list(tmp_path.glob(".out*"))


COMMAND = "from obverse.engine.cli import main; main()"


@pytest.mark.parametrize("cached", [False, True])
def test_killed_and_called_again_gives_the_same_bytes(tmp_path: Path, tiny_bert: Path, cached: bool) -> None:
    source = write_texts(tmp_path / "texts.parquet", some_texts(2000))
    options = ["embed", str(source), "--model", str(tiny_bert), "--backend", "torch", "--dtype", "float32", "-q"]
    options += ["--shard-rows", "40", "--batch-size", "8"]

    def command(name: str) -> list[str]:
        more = ["--cache", str(tmp_path / f"cache-{name}")] if cached else []
        return [sys.executable, "-c", COMMAND, *options, *more, "-o", str(tmp_path / name)]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, env=environment, capture_output=True)
    for stop_at in (1, 6):
        child = subprocess.Popen(command("killed"), env=environment, stdout=subprocess.DEVNULL)
        while child.poll() is None and len(list((tmp_path / "killed").glob("part-*"))) < stop_at:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
    left = shard_bytes(tmp_path / "killed")
    assert 6 <= len(left) < 50, "the child ended before it was killed"
    done = subprocess.run(command("killed"), check=True, env=environment, capture_output=True, text=True)
    assert f"done before {len(left) * 40:,}" in done.stdout
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def test_cache_across_calls(tmp_path: Path, tiny_bert: Path) -> None:
    texts = some_texts(90)
    settings = settings_of(tiny_bert, cache=tmp_path / "cache")
    first, second, third = (Counting(settings) for _ in range(3))
    source = write_texts(tmp_path / "a.parquet", texts)
    embed_files(source, tmp_path / "one", settings, shard_rows=20, encoder=first)
    report = embed_files(source, tmp_path / "two", settings, shard_rows=33, encoder=second)
    assert (second.texts, report.computed, report.cached) == (0, 0, len(set(texts)))
    parts = [
        np.concatenate([read_shard(part)[1] for part in sorted((tmp_path / name).glob("part-*"))])
        for name in ("one", "two")
    ]
    np.testing.assert_array_equal(*parts)
    more = write_texts(tmp_path / "b.parquet", ["a new text", *texts])
    report = embed_files(more, tmp_path / "three", settings, encoder=third)
    assert (third.texts, report.computed) == (1, 1)
    other = Counting(settings.model_copy(update={"prefix": "query: "}))
    embed_files(source, tmp_path / "four", other.settings, encoder=other)
    assert other.texts == len(set(texts))


def test_a_killed_shard_that_is_in_the_cache_keeps_its_bytes(tmp_path: Path, tiny_bert: Path) -> None:
    source = write_texts(tmp_path / "a.parquet", some_texts(100))
    settings = settings_of(tiny_bert, cache=tmp_path / "cache")
    embed_files(source, tmp_path / "out", settings, shard_rows=20)
    whole = shard_bytes(tmp_path / "out")
    for name in list(whole)[2:]:
        (tmp_path / "out" / name).unlink()
    report = embed_files(source, tmp_path / "out", settings, shard_rows=20)
    assert (report.resumed, report.computed) == (40, 0)
    assert shard_bytes(tmp_path / "out") == whole


def test_a_folder_belongs_to_one_input_and_one_process(tmp_path: Path, tiny_bert: Path) -> None:
    texts = some_texts(30)
    source, settings = write_texts(tmp_path / "a.parquet", texts), settings_of(tiny_bert)
    encoder, out = Encoder(settings), tmp_path / "out"
    embed_files(source, out, settings, shard_rows=10, encoder=encoder)
    whole = shard_bytes(out)
    changed = write_texts(tmp_path / "b.parquet", [*texts[:-1], "another"])
    with pytest.raises(RunError, match=r"differs in: texts\)"):
        embed_files(changed, out, settings, shard_rows=10, encoder=encoder)
    renumbered = write_texts(tmp_path / "c.parquet", texts, range(1, 31))
    with pytest.raises(RunError, match=r"differs in: texts\)"):
        embed_files(renumbered, out, settings, shard_rows=10, encoder=encoder)
    with pytest.raises(RunError, match=r"differs in: shard_rows\)"):
        embed_files(source, out, settings, shard_rows=11, encoder=encoder)
    with pytest.raises(RunError, match=r"differs in: encoder\)"):
        embed_files(source, out, settings_of(tiny_bert, max_length=9), shard_rows=10)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another process"):
            embed_files(source, out, settings, shard_rows=10, encoder=encoder)
    assert embed_files(source, out, settings, shard_rows=10, encoder=encoder).resumed == 30
    assert shard_bytes(out) == whole
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "part-00000.arrow").write_bytes(b"mine")
    with pytest.raises(RunError, match="something else"):
        embed_files(source, tmp_path / "foreign", settings, encoder=encoder)
    (out / "part-00001.arrow").write_bytes(whole["part-00001.arrow"][:-100])
    with pytest.raises(RunError, match=r"part-00001\.arrow is damaged"):
        read_shard(out / "part-00001.arrow")


def table_of(**columns: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "a.parquet")
        return folder / "a.parquet"

    return write


def text_of(name: str, text: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder / name

    return write


LINES = '{"id": 1, "text": "a"}\n\n{"id": 2, "text": %s}\n'
PACKED = gzip.compress((LINES % '"b"' * 50).encode())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (table_of(id=[1, 2, 3], text=["a", None, "c"]), r"a\.parquet, row 2, field 'text'.*a text"),
        (table_of(id=[1, 2, 3], text=["a", "b", " \t"]), r"row 3, field 'text'.*saw ' \\t'"),
        (table_of(id=[1, 2, 1], text=["a", "b", "c"]), r"a\.parquet, row 3, field 'id'.*unique, saw 1"),
        (table_of(id=[1, None], text=["a", "b"]), r"row 2, field 'id'.*an id"),
        (table_of(id=[1.5], text=["a"]), r"field 'id'.*integers, saw 1\.5"),
        (table_of(id=[1], text=[7]), r"field 'text'.*texts, saw 'int64'"),
        (table_of(id=[1], body=["a"]), r"field 'text'.*saw \['id', 'body'\]"),
        (table_of(text=["a"]), r"field 'id'.*a column 'id'"),
        (table_of(id=pa.array([], pa.int64()), text=pa.array([], pa.string())), "at least one text"),
        (text_of("a.jsonl", LINES % "null"), r"a\.jsonl, row 3, field 'text'"),
        (text_of("a.jsonl", LINES % '""'), r"a\.jsonl, row 3, field 'text'"),
        (text_of("a.jsonl", LINES % '"\\ud800"'), r"a\.jsonl, row 3, field 'text'"),
        (text_of("a.jsonl", LINES % '"b"' + '{"id": 1, "text": "c"}\n'), r"row 4, field 'id'.*unique, saw 1"),
        (text_of("a.jsonl", (LINES % '"b"')[:-4]), r"a\.jsonl, row 3: .*JSON"),
        (text_of("a.jsonl", '{"id": true, "text": "a"}'), r"row 1, field 'id'.*integer"),
        (text_of("a.jsonl", '{"id": 1}'), r"row 1, field 'text'.*a field 'text'"),
        (text_of("a.jsonl", b'{"id": 1, "text": "\xff"}'), r"a\.jsonl.*readable"),
        (text_of("a.jsonl.gz", PACKED[:-20]), r"a\.jsonl\.gz.*whole, readable"),
        (text_of("a.parquet", b"PAR1 and no more"), r"a\.parquet.*whole, readable"),
        (text_of("a.arrow", b"ARROW1 and no more"), r"a\.arrow.*whole, readable"),
        (text_of("a.txt", "a"), r"a\.txt.*\.parquet, \.jsonl"),
        (lambda folder: folder / "none.parquet", "an existing file"),
        (lambda folder: folder, "files of one kind"),
    ],
)
def test_bad_input_is_named_before_any_work(
    tmp_path: Path, write: Callable[[Path], Path], message: str, tiny_bert: Path
) -> None:
    path = write(tmp_path)
    with pytest.raises(InputError, match=message):
        embed_files(path, tmp_path / "out", settings_of(tiny_bert))
    assert not (tmp_path / "out").exists()


def test_duplicate_ids_are_named_across_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "in" / "a.parquet", ["a"] * 5)
    write_texts(tmp_path / "in" / "b.parquet", ["a"] * 4, [7, 8, 4, 0])
    with pytest.raises(InputError, match=r"b\.parquet, row 3, field 'id'.*saw 4"):
        scan(TextSource(tmp_path / "in"))
    write_texts(tmp_path / "in" / "b.parquet", ["b", "a", "c"], [7, 8, 9])
    assert scan(TextSource(tmp_path / "in")).first.tolist() == [0, 0, 0, 0, 0, 5, 0, 7]


def test_the_verb(tmp_path: Path, tiny_bert: Path) -> None:
    source = write_texts(tmp_path / "a.parquet", ["the cat", "a dog", "the cat"])
    call = ["embed", str(source), "--model", str(tiny_bert), "-o", str(tmp_path / "out"), "-q"]
    command = [sys.executable, "-c", COMMAND, *call]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "3 rows" in done.stdout
    assert "computed 2, cached 0, repeated 1" in done.stdout
    failed = subprocess.run([*command, "--column", "body"], check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "a.parquet, field 'body': expected a column 'body'" in failed.stderr


MEMORY = """
import hashlib, resource, sys
from pathlib import Path
import numpy as np
from obverse.engine.embed import EmbedSettings, embed_files

class Hashed:
    settings, dim = EmbedSettings(), 1024
    def describe(self):
        return {}
    def encode(self, texts, *, on_progress=None):
        seeds = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=4).digest(), "little") for t in texts]
        return np.array(seeds, np.float32)[:, None] / 2.0**32 * np.ones(1024, np.float32)

rows = int(sys.argv[2])
path = Path(sys.argv[1]) / f"{rows}.jsonl"
with path.open("w") as handle:
    for n in range(rows):
        handle.write(f'{{"id": {n}, "text": "text number {n % (rows - 50)}"}}\\n')
embed_files(path, path.with_suffix(""), Hashed.settings, shard_rows=2048, encoder=Hashed())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_grows_with_the_shard_not_with_the_texts(tmp_path: Path) -> None:
    peaks = []
    for rows in (8_000, 80_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path), str(rows)], check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout))
    # 72,000 more rows are 147 MB of vectors; ids, keys and their sort are under 100 bytes a row.
    assert peaks[1] - peaks[0] < 72_000 * 200, peaks
