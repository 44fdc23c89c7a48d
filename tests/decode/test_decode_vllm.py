"""Constraints in vLLM: both runners' interfaces against fresh matchers. (The V1 runner for real: the next file.)

Interface V2, and V1 with its states on a device, run Triton's kernel: in its interpreter (in a process of its own,
started from here) and on CUDA with ``-m gpu``.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from obverse._core import Matcher  # noqa: E402
from obverse.engine.decode.automaton import Template  # noqa: E402
from obverse.engine.decode.catalog import Catalog  # noqa: E402
from obverse.engine.decode.vllm_params import CatalogShelf, Offer, RequestOptions, request_options  # noqa: E402
from obverse.engine.decode.vllm_v1 import RowRequests  # noqa: E402
from obverse.engine.decode.vllm_v2 import SlotRequests  # noqa: E402
from obverse.engine.errors import InputError  # noqa: E402
from obverse.engine.generate.process_state import ProcessState  # noqa: E402
from obverse.engine.records.context import NameContext  # noqa: E402
from obverse.engine.records.sequence import SequenceFormat  # noqa: E402
from obverse.engine.records.tokenizers import find_tokenizer  # noqa: E402
from obverse.kernels.launch import triton_installed, triton_interprets  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "engine" / "generate" / "demo_model"
NAMES = ["Paris", "Paris Texas", "Par", "Lima", "New York", "New York City", "York", "Oslo"]
RELATIONS = ["capital of", "capital of the region", "in"]


@pytest.fixture(scope="module", autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """Importing vLLM sets environment variables."""
    state = ProcessState()
    yield
    state.note_changes()
    state.restore()


def names_table(names: Sequence[str]) -> pa.Table:
    return pa.table({"uri": [f"u:{name}" for name in names], "name": list(names)})


@pytest.fixture(scope="module")
def form() -> SequenceFormat:
    return SequenceFormat(find_tokenizer(DEMO))


@pytest.fixture(scope="module")
def tiny(form: SequenceFormat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.catalog"
    Catalog.build(names_table(NAMES), names_table(RELATIONS), form).save(path)
    return path


@pytest.fixture(scope="module")
def quoted(tiny: Path, form: SequenceFormat) -> Path:
    """The same names as they stand inside JSON strings."""
    path = tiny.with_name("json.catalog")
    context = NameContext.named(form.tokenizer, "json")
    Catalog.build(names_table(NAMES), names_table(RELATIONS), context).save(path)
    return path


LINES = Template(item="{subject} | {relation} | {object}", separator=" ; ")


@pytest.fixture(scope="module")
def offer(tiny: Path, quoted: Path) -> Offer:
    return Offer.of({"tiny": tiny, "other": tiny, "json": quoted}, {"lines": LINES})


@pytest.fixture(scope="module")
def shelf(offer: Offer) -> CatalogShelf:
    return CatalogShelf(offer, str(DEMO), len(find_tokenizer(DEMO)))


def params(**extra: Any) -> Any:
    """What a request says, with vLLM's defaults for what is looked at."""
    rest = {"allowed_token_ids": None, "bad_words": [], "min_tokens": 0, "structured_outputs": None}
    return SimpleNamespace(extra_args={f"obverse_{key}": value for key, value in extra.items()} or None, **rest)


CHOICES: list[dict[str, Any]] = [
    {},
    {"catalog": "tiny"},
    {"catalog": "tiny", "max_triplets": 1},
    {"catalog": "tiny", "form": "subject_collapsed", "max_triplets": 2},
    {"catalog": "other", "form": "subject_collapsed"},
    {"catalog": "tiny", "unique": True},
    {"catalog": "tiny", "entities": ["Paris", "Lima", "nowhere"]},
    {"catalog": "json", "form": "json", "max_triplets": 2},
    {"catalog": "tiny", "form": "lines"},
]


class Request:
    """A request as a runner knows it, and what it may write next."""

    def __init__(self, shelf: CatalogShelf, rng: random.Random, choice: dict[str, Any] | None = None) -> None:
        self.params = params(**(rng.choice(CHOICES) if choice is None else choice))
        self.options = request_options(self.params)
        self.shelf, self.rng = shelf, rng
        self.prompt = [rng.randrange(50) for _ in range(rng.randrange(1, 5))]
        self.tokens: list[int] = []

    def allowed(self, more: Sequence[int] = ()) -> set[int]:
        """By a fresh matcher over all tokens; everything for a free request."""
        if self.options is None:
            return set(range(self.shelf.vocab_size))
        matcher: Matcher = self.shelf.matcher(self.options)
        for token in [*self.tokens, *more]:
            if not (matcher.is_complete or matcher.accept(token)):
                return {self.shelf.eos}
        return {self.shelf.eos} if matcher.is_complete else set(matcher.allowed().tolist())

    def choose(self, more: Sequence[int] = ()) -> int:
        """A token to go on with: rarely the end, so that outputs grow."""
        allowed = sorted(self.allowed(more) - {self.shelf.eos})
        return self.rng.choice(allowed) if allowed and self.rng.random() < 0.97 else self.shelf.eos

    @property
    def ended(self) -> bool:
        return self.shelf.eos in self.tokens or len(self.tokens) > 40


def assert_rows(logits: Any, expected: Sequence[set[int]]) -> None:
    for row, allowed in zip(logits.cpu(), expected, strict=True):
        assert set(torch.nonzero(row > float("-inf"))[:, 0].tolist()) == allowed


@pytest.fixture
def rng() -> random.Random:
    """A fresh seed each run, printed when a test fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return random.Random(seed)


def test_vllm_options_are_read_and_refused_by_name(offer: Offer) -> None:
    assert request_options(params()) is None
    assert request_options(SimpleNamespace(extra_args={"other": 1})) is None
    full = params(catalog="tiny", form="subject_collapsed", max_triplets=3, unique=1, entities=["x"])
    assert request_options(full, offer) == RequestOptions("tiny", "subject_collapsed", 3, True, ("x",))
    for bad, where in [
        ({"catalog": "b"}, "obverse_catalog.*one of json, other, tiny.*'b'"),
        ({"catalog": 3}, "obverse_catalog"),
        ({"form": "fully_expanded"}, "a catalogue beside"),
        ({"catalog": "tiny", "forms": "x"}, "obverse_forms.*obverse_form"),
        ({"catalog": "tiny", "form": "xml"}, "obverse_form.*fully_expanded.*json.*lines.*'xml'"),
        ({"catalog": "tiny", "form": "json"}, "fully_expanded, subject_collapsed, lines .*tiny is made for.*'marked'"),
        ({"catalog": "json"}, "obverse_form.*one of json "),
        ({"catalog": "tiny", "max_triplets": 0}, "obverse_max_triplets.*0"),
        ({"catalog": "tiny", "max_triplets": True}, "obverse_max_triplets"),
        ({"catalog": "tiny", "unique": "yes"}, "obverse_unique"),
        ({"catalog": "tiny", "entities": "Paris"}, "obverse_entities"),
    ]:
        with pytest.raises(InputError, match=where):
            request_options(params(**bad), offer)
    conflict = params(catalog="tiny")
    conflict.min_tokens = 2
    with pytest.raises(InputError, match="min_tokens"):
        request_options(conflict)


def test_vllm_catalogues_of_another_tokenizer_are_refused_at_the_start(tiny: Path, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        CatalogShelf(Offer.of({"tiny": tiny}), str(tiny_llama), 500)
    with pytest.raises(InputError, match="missing"):
        Offer.of({"none": tiny.with_name("missing")})
    with pytest.raises(InputError, match="json"):
        Offer.of({"tiny": tiny}, {"json": LINES})


def engine_config(**extra: Any) -> Any:
    model = SimpleNamespace(tokenizer=str(DEMO), model=str(DEMO), get_vocab_size=lambda: 4096)
    return SimpleNamespace(additional_config=extra, model_config=model)


def test_vllm_catalogues_are_named_in_the_engine_or_the_class(tiny: Path) -> None:
    given = {"catalogs": {"a": str(tiny)}, "templates": {"lines": {"item": LINES.item, "separator": " ; "}}}
    found = CatalogShelf.of(engine_config(obverse=given), None)
    assert found.offer == Offer.of({"a": tiny}, {"lines": LINES})
    assert list(CatalogShelf.of(engine_config(), Offer.of({"b": tiny})).catalogs) == ["b"]
    for config, named in [
        (engine_config(), None),
        (engine_config(obverse={"catalogs": str(tiny)}), None),
        (engine_config(obverse={"catalogs": {"a": str(tiny)}, "more": 1}), None),
        (engine_config(obverse={"catalogs": {"a": str(tiny)}, "templates": {"x": {"itme": ""}}}), None),
        (engine_config(obverse=given), Offer.of({"b": tiny})),
    ]:
        with pytest.raises(InputError, match="obverse"):
            CatalogShelf.of(config, named)


# --- interface V1 ---------------------------------------------------------------------------------------------------


class Update(NamedTuple):
    removed: list[int]
    added: list[tuple[int, Any, list[int] | None, list[int]]]
    moved: list[tuple[int, int, Any]]


def _one_way() -> Any:
    return SimpleNamespace(name="UNIDIRECTIONAL")


def run_rows(shelf: CatalogShelf, rng: random.Random, *, on_device: bool, device: str, steps: int) -> None:
    """A batch as runner V1 keeps it: rows freed, filled, moved down and swapped, with every row checked each step."""
    most = 4
    processor = RowRequests(shelf, most, torch.device(device), on_device=on_device)
    rows: list[Request] = []
    for _ in range(steps):
        ended = [row for row, request in enumerate(rows) if request.ended or rng.random() < 0.03]
        update = Update([], [], [])
        new = [Request(shelf, rng) for _ in range(rng.randrange(3))]
        for row in ended:
            if new:  # a freed row is filled at once ...
                rows[row] = new.pop()
                if rng.random() < 0.4:  # ... perhaps by a request that comes back after preemption
                    rows[row].tokens = [rows[row].choose()]
                    rows[row].tokens.append(rows[row].choose())
                update.added.append((row, rows[row].params, rows[row].prompt, rows[row].tokens))
            else:
                update.removed.append(row)
        for row in sorted(update.removed, reverse=True):  # ... else the last row moves there
            last = len(rows) - 1
            if row != last:
                rows[row] = rows[last]
                update.moved.append((last, row, _one_way()))
            rows.pop()
        while new and len(rows) < most:
            rows.append(new.pop())
            update.added.append((len(rows) - 1, rows[-1].params, rows[-1].prompt, rows[-1].tokens))
        if len(rows) > 1 and rng.random() < 0.4:
            a, b = rng.sample(range(len(rows)), 2)
            rows[a], rows[b] = rows[b], rows[a]
            update.moved.append((a, b, SimpleNamespace(name="SWAP")))
        # Under async scheduling the newest tokens are not there yet.
        newest = [request.tokens[-1:] for request in rows]
        for request in rows:
            request.tokens[-1:] = [-1] * len(request.tokens[-1:])
        processor.update_state(update if any(update) else None)
        for request, token in zip(rows, newest, strict=True):
            request.tokens[-1:] = token
        logits = torch.zeros((len(rows), shelf.vocab_size), device=device)
        assert processor.apply(logits) is logits
        assert_rows(logits, [request.allowed() for request in rows])
        for request in rows:
            request.tokens.append(request.choose())
            if rng.random() < 0.05:  # vLLM takes tokens back where it could not load their keys and values
                del request.tokens[-rng.randrange(1, 4) :]
                request.tokens.append(request.choose())


def test_vllm_rows_follow_a_changing_batch(shelf: CatalogShelf, rng: random.Random) -> None:
    assert RowRequests(shelf, 2, torch.device("cpu"), on_device=False).is_argmax_invariant() is False
    run_rows(shelf, rng, on_device=False, device="cpu", steps=150)


def test_vllm_rows_name_what_vllm_did_not_fill_in(shelf: CatalogShelf) -> None:
    processor = RowRequests(shelf, 2, torch.device("cpu"), on_device=False)
    processor.update_state(Update([], [(0, params(catalog="tiny"), None, [-1])], []))
    with pytest.raises(RuntimeError, match="newest token"):
        processor.apply(torch.zeros((1, shelf.vocab_size)))


def test_vllm_rows_may_only_end_where_nothing_can_be_followed(shelf: CatalogShelf) -> None:
    processor = RowRequests(shelf, 4, torch.device("cpu"), on_device=False)
    tokens: list[list[int]] = [[], [5, 6], []]
    added = [(row, params(catalog=("tiny", "tiny", "nowhere")[row]), None, tokens[row]) for row in range(3)]
    processor.update_state(Update([], added, []))
    logits = torch.randn((3, shelf.vocab_size + 8))
    before = logits.clone()
    processor.apply(logits)
    start = set(shelf.matcher(RequestOptions("tiny")).allowed().tolist())
    assert_rows(logits, [start, {shelf.eos}, {shelf.eos}])
    kept = logits > float("-inf")
    assert torch.equal(logits[kept], before[kept])


def test_vllm_rows_in_other_dtypes(shelf: CatalogShelf, rng: random.Random) -> None:
    processor = RowRequests(shelf, 4, torch.device("cpu"), on_device=False)
    requests = [Request(shelf, rng, CHOICES[i]) for i in (1, 3, 0, 5)]
    requests[1].tokens = [shelf.eos]
    added = [(row, request.params, None, request.tokens) for row, request in enumerate(requests)]
    processor.update_state(Update([], added, []))
    logits = torch.randn((4, shelf.vocab_size + 5)).to(torch.bfloat16)
    processor.apply(logits)
    assert_rows(logits, [r.allowed() if r.options else set(range(shelf.vocab_size + 5)) for r in requests])


# --- interface V2 ---------------------------------------------------------------------------------------------------


def _targets() -> list[Any]:
    found: list[Any] = []
    if os.environ.get("TRITON_INTERPRET") == "1" and triton_interprets():
        found.append(pytest.param("cpu", id="interpreter"))
    found.append(pytest.param("cuda", id="cuda", marks=pytest.mark.gpu))
    return found


@pytest.fixture(params=_targets(), scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cpu":  # interpreted programs run one after another: one a row is enough
            patch.setattr("obverse.kernels.mask_logits.RESIDENT_PROGRAMS", 1)
        yield str(request.param)


def test_vllm_rows_on_a_device_follow_a_changing_batch(shelf: CatalogShelf, rng: random.Random, device: str) -> None:
    run_rows(shelf, rng, on_device=True, device=device, steps=60 if device == "cpu" else 300)


class Runner:
    """What runner V2 does around a processor: slots from a free list, rows in any order, drafts, preemption."""

    def __init__(self, shelf: CatalogShelf, rng: random.Random, device: str, *, drafts: int) -> None:
        most, length = 4, 64
        self.shelf, self.rng, self.device, self.num_drafts = shelf, rng, device, drafts
        self.history = torch.randint(0, 50, (most, length), dtype=torch.int32, device=device)
        self.prompt_len = np.zeros(most, np.int32)
        state = {
            "device": torch.device(device),
            "max_num_reqs": most,
            "vocab_size": shelf.vocab_size,
            "all_token_ids": SimpleNamespace(gpu=self.history),
            "prompt_len": SimpleNamespace(np=self.prompt_len, gpu=torch.zeros(most, device=device)),
            "prefill_len": SimpleNamespace(np=np.zeros(most, np.int32)),
            "total_len": SimpleNamespace(gpu=torch.zeros(most, dtype=torch.int32, device=device)),
        }
        self.processor = SlotRequests(shelf, _make("LogitsProcRequestState", state), drafts=drafts > 0)
        self.free = list(range(most))
        self.live: dict[int, Request] = {}
        self.waiting: list[Request] = []

    def admit(self) -> None:
        while self.free and self.rng.random() < 0.7:
            back = self.waiting and self.rng.random() < 0.6
            request = self.waiting.pop() if back else Request(self.shelf, self.rng)
            slot = self.free.pop()
            self.prompt_len[slot] = len(request.prompt)
            self.live[slot] = request
            assert self.processor.add_request(slot, request.params) is (request.options is not None)
            self._write(slot)
        self.processor.apply_staged_writes()

    def step(self) -> None:
        self.admit()
        if not self.live:
            return
        slots = self.rng.sample(sorted(self.live), self.rng.randrange(1, len(self.live) + 1))
        rows, expected, drafted = self._rows(slots)
        logits = torch.zeros((len(rows), self.shelf.vocab_size), device=self.device)
        assert self.processor.apply(logits, self._context(slots, rows)) is logits
        assert_rows(logits, expected)
        for slot in slots:
            self._accept(slot, drafted[slot])

    def _rows(
        self, slots: Sequence[int]
    ) -> tuple[list[tuple[int, int, int, int]], list[set[int]], dict[int, list[int]]]:
        """(slot, place among the request's rows, position, token) of each row; what may follow; the drafts."""
        rows, expected, drafted = [], [], {}
        for slot in slots:
            request = self.live[slot]
            sequence = request.prompt + request.tokens
            drafts: list[int] = []
            for _ in range(self.rng.randrange(self.num_drafts + 1) if request.tokens else 0):
                good = self.rng.random() < 0.8
                drafts.append(request.choose(drafts) if good else self.rng.randrange(50, 60))
            for place in range(len(drafts) + 1):
                token = drafts[place - 1] if place else sequence[-1]
                rows.append((slot, place, len(sequence) - 1 + place, token))
                expected.append(request.allowed(drafts[:place]))
            drafted[slot] = drafts
        return rows, expected, drafted

    def _context(self, slots: Sequence[int], rows: Sequence[tuple[int, int, int, int]]) -> Any:
        columns = [torch.tensor(column, device=self.device) for column in zip(*rows, strict=True)]
        lengths = [len(self.live[slot].prompt + self.live[slot].tokens) for slot in slots]
        fields = {
            "expanded_idx_mapping": columns[0].int(),
            "idx_mapping": torch.tensor(slots, device=self.device).int(),
            "idx_mapping_np": np.array(slots, np.int32),
            "expanded_local_pos": columns[1].int(),
            "input_ids": columns[3].int(),
            "pos": columns[2],
            "seq_lens_upper_bound_np": np.array(lengths),
        }
        return _make("LogitsContext", fields)

    def _accept(self, slot: int, drafts: Sequence[int]) -> None:
        """Take some drafts and one more token; then the request may end, or be preempted."""
        request = self.live[slot]
        if request.tokens == [] and self.rng.random() < 0.2:
            return  # its prompt is not whole yet: no token comes of this step
        for draft in drafts:
            if draft not in request.allowed() or self.rng.random() < 0.3:
                break
            request.tokens.append(draft)
        request.tokens.append(request.choose())
        self._write(slot)
        if request.ended or self.rng.random() < 0.06:
            if not request.ended:
                self.waiting.append(request)
            del self.live[slot]
            self.free.append(slot)

    def _write(self, slot: int) -> None:
        sequence = self.live[slot].prompt + self.live[slot].tokens
        self.history[slot, : len(sequence)] = torch.tensor(sequence, dtype=torch.int32, device=self.device)


def _make(name: str, fields: dict[str, Any]) -> Any:
    """vLLM's own dataclass where vLLM is, so that a field that it renames is seen here."""
    try:
        from vllm.v1.worker.gpu.sample import logits_processor
    except ImportError:
        return SimpleNamespace(**fields)
    return getattr(logits_processor, name)(**fields)


@pytest.mark.parametrize("drafts", [0, 3])
def test_vllm_slots_follow_requests_through_preemption(
    shelf: CatalogShelf, rng: random.Random, device: str, drafts: int
) -> None:
    runner = Runner(shelf, rng, device, drafts=drafts)
    for _ in range((24 if drafts else 40) if device == "cpu" else 400):
        runner.step()


@pytest.mark.skipif(not triton_installed(), reason="Triton is not installed")
def test_vllm_passes_every_check_in_the_interpreter() -> None:
    if triton_interprets():
        pytest.skip("this process interprets already: the checks run in it")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", "interpreter", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b3 passed", done.stdout), done.stdout[-2000:]


# --- the class ------------------------------------------------------------------------------------------------------


def test_vllm_loads_the_class_by_object_name_and_pickle(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from vllm.v1.sample import logits_processor as v1
    from vllm.v1.worker.gpu.sample.logits_processor import loader as v2

    from obverse.engine.decode import vllm_processor

    (named,) = vllm_processor.constraint_processors({"tiny": tiny})
    assert pickle.loads(pickle.dumps(named)) is named
    assert vllm_processor.constraint_processors({"tiny": str(tiny)}) == [named]
    path = "obverse.engine.decode.vllm_processor:ConstraintProcessor"
    plain = vllm_processor.ConstraintProcessor
    assert pickle.loads(pickle.dumps(plain)) is plain
    assert v1._load_logitsprocs_by_fqcns([path, named]) == [plain, named]
    assert v2._load_v2_logitsprocs_by_fqcns([path, named]) == [plain, named]
    with pytest.raises(InputError, match="missing"):
        vllm_processor.constraint_processors({"tiny": tmp_path / "missing"})
    with pytest.raises(AttributeError):
        vllm_processor.__getattr__("other")


def test_vllm_runner_chooses_the_processor(tiny: Path) -> None:
    pytest.importorskip("vllm")
    from vllm.v1.sample.logits_processor import LogitsProcessors

    from obverse.engine.decode.vllm_processor import constraint_processors

    (named,) = constraint_processors({"tiny": tiny})
    config = engine_config()
    config.scheduler_config = SimpleNamespace(max_num_seqs=3)
    config.speculative_config = None
    rows = named(config, torch.device("cpu"), False)
    assert isinstance(rows, RowRequests)
    assert list(LogitsProcessors([rows]).non_argmax_invariant) == [rows]
    state = {"device": torch.device("cpu"), "max_num_reqs": 3, "vocab_size": 4096}
    rest = dict.fromkeys(("all_token_ids", "prompt_len", "prefill_len", "total_len"))
    assert isinstance(named(config, _make("LogitsProcRequestState", state | rest)), SlotRequests)
