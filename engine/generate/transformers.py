"""Hugging Face transformers: runs wherever torch does, in batches cut by id within each shard.

Each row's draws come from its own generator (exponential race: argmax of p / Exp(1), which samples p), so a
row's randomness depends on its seed alone. Logits may still differ in the last bits with a row's neighbours;
batches never cross shards, so a shard done again is the same bytes on the same machine.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from obverse.engine.errors import BackendError, MissingPackageError, RecipeError
from obverse.engine.generate.nucleus import keep_nucleus_
from obverse.engine.generate.prompts import encode_prompt
from obverse.engine.generate.protocol import Completion, Request, failed, finish
from obverse.engine.generate.settings import GenerateSettings, is_local, model_source
from obverse.engine.records.models import quiet_transformers

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersBackend"]

BATCH_ROWS = 32
LOAD_ARGUMENTS = ("dtype", "attn_implementation", "revision", "trust_remote_code")
ARGUMENTS = (*LOAD_ARGUMENTS, "device")


class _Row(NamedTuple):
    request: Request
    ids: list[int]


class TransformersBackend:
    """A causal language model loaded with ``AutoModelForCausalLM``."""

    def __init__(self, settings: GenerateSettings) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            needed_for = "generate.backend = 'transformers'"
            raise MissingPackageError("transformers", needed_for=needed_for, extra="demo") from error
        user = dict(settings.engine)
        for name in user:
            if name not in ARGUMENTS:
                near = difflib.get_close_matches(name, ARGUMENTS, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; it takes {', '.join(ARGUMENTS)}"
                raise RecipeError(f"generate.engine: transformers takes no argument '{name}' here{hint}")
        _refuse_what_only_vllm_does(settings)
        device = str(user.pop("device", "cuda" if torch.cuda.is_available() else "cpu"))
        user.setdefault("dtype", "float32" if device == "cpu" else "auto")
        source = model_source(settings)
        shared: dict[str, Any] = {k: user[k] for k in ("revision", "trust_remote_code") if k in user}
        shared["local_files_only"] = is_local(settings)
        try:
            with quiet_transformers():
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(source, padding_side="left", **shared)
                model = transformers.AutoModelForCausalLM.from_pretrained(source, **(user | shared))
        except Exception as error:
            raise BackendError(f"transformers could not load {settings.model!r}: {error}") from error
        self._model: Any = model.to(device).eval()
        self._settings, self._device = settings, device
        self._stops = _stop_ids(self._model, self._tokenizer)
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._max_len = int(limit) if limit else 1 << 30

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Answer requests group by group; see `protocol.Backend`."""
        size = self._settings.concurrency or BATCH_ROWS
        for _, members in itertools.groupby(requests, key=operator.attrgetter("group")):
            rows: list[_Row] = []
            for request in sorted(members, key=operator.attrgetter("id")):
                row = self._admit(request)
                if isinstance(row, Completion):
                    yield row
                else:
                    rows.append(row)
            for first in range(0, len(rows), size):
                yield from self._batch(rows[first : first + size])

    def facts(self) -> dict[str, Any]:
        """See `protocol.Backend`."""
        import torch
        import transformers

        return {
            "backend": "transformers",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "model": self._settings.model,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._device if self._device == "cpu" else torch.cuda.get_device_name(self._device),
            "batch_invariant": False,
            "batch_rows": self._settings.concurrency or BATCH_ROWS,
            "max_model_len": self._max_len,
        }

    def close(self) -> None:
        """See `protocol.Backend`."""
        import torch

        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _admit(self, request: Request) -> _Row | Completion:
        try:
            ids = encode_prompt(self._tokenizer, request.prompt, chat=request.chat, system=self._settings.system)
        except (ValueError, TypeError) as error:
            return failed(request, f"refused: {error}")
        if len(ids) >= self._max_len:
            message = f"the prompt has {len(ids)} tokens; the model takes {self._max_len}"
            return failed(request, message, len(ids))
        return _Row(request, ids)

    def _batch(self, rows: Sequence[_Row]) -> Iterator[Completion]:
        """One left-padded batch through ``generate``; a batch that fails is tried again row by row."""
        try:
            outputs = self._generate(rows)
        except (RuntimeError, ValueError, IndexError) as error:
            if len(rows) > 1:
                for row in rows:
                    yield from self._batch([row])
            else:
                yield failed(rows[0].request, f"{type(error).__name__}: {error}", len(rows[0].ids))
            return
        for row, (ids, reason) in zip(rows, outputs, strict=True):
            yield finish(row.request, *self._stopped(ids, reason, row))

    def _stopped(self, ids: list[int], reason: str, row: _Row) -> tuple[str, str, int, int]:
        """A row's text, cut before the first stop string, why it ended, and its tokens in and out.

        As vLLM counts, the token that completes the stop string is the last.
        """
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        stops = self._settings.sampling.stop
        if not any(stop in text for stop in stops):
            return text, reason, len(row.ids), len(ids)
        few, many = 0, len(ids)
        while many - few > 1:
            middle = (few + many) // 2
            part = self._tokenizer.decode(ids[:middle], skip_special_tokens=True)
            few, many = (few, middle) if any(stop in part for stop in stops) else (middle, many)
        text = self._tokenizer.decode(ids[:many], skip_special_tokens=True)
        first = min(place for stop in stops if (place := text.find(stop)) >= 0)
        return text[:first], "stop", len(row.ids), many

    def _generate(self, rows: Sequence[_Row]) -> list[tuple[list[int], str]]:
        """Each row's new ids (the stop token among them, as vLLM counts) and why it ended."""
        import torch
        import transformers

        width = max(len(row.ids) for row in rows)
        pad = self._tokenizer.pad_token_id
        pad = self._stops[0] if pad is None and self._stops else pad or 0
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row.ids) :] = torch.tensor(row.ids)
            mask[i, width - len(row.ids) :] = 1
        settings = self._settings
        room = [min(settings.sampling.max_tokens, self._max_len - len(row.ids)) for row in rows]
        # The sampler leaves one token per row, so "greedy" takes what it drew; the model's own
        # generation_config must not filter a second time.
        config = transformers.GenerationConfig(
            max_new_tokens=max(room), do_sample=False, eos_token_id=self._stops or None, pad_token_id=pad
        )
        sampler = _RowSampler([r.request.seed for r in rows], settings.sampling.temperature, settings.sampling.top_p)
        with torch.inference_mode(), _own_config(self._model, config), quiet_transformers():
            output = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=config,
                logits_processor=[sampler],
                stopping_criteria=[_RoomLeft(width, room), *self._stop_criteria()],
            )
        return [self._cut(row, room[i]) for i, row in enumerate(output[:, width:].tolist())]

    def _stop_criteria(self) -> list[Any]:
        import transformers

        stops = self._settings.sampling.stop
        return [transformers.StopStringCriteria(self._tokenizer, stops)] if stops else []

    def _cut(self, ids: list[int], room: int) -> tuple[list[int], str]:
        for i, token in enumerate(ids[:room]):
            if token in self._stops:
                return ids[: i + 1], "stop"
        return ids[:room], "length"


class _RowSampler:
    """A logits processor that draws each row's next token from that row's own generator."""

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        import torch

        self._temperature, self._top_p = temperature, top_p
        # On the CPU whatever the model's device: the same draws everywhere.
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [rows, vocabulary] with all but the drawn token of each row at -inf."""
        import torch

        del input_ids
        if self._temperature == 0.0:
            return scores
        logits = scores.to(dtype=torch.float32, device="cpu", copy=True).div_(self._temperature)
        probs = keep_nucleus_(logits, self._top_p).softmax(dim=-1)
        race = torch.empty_like(probs)
        for row, generator in zip(race, self._generators, strict=True):
            row.exponential_(generator=generator)
        drawn = probs.div_(race).argmax(dim=-1, keepdim=True).to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)


class _RoomLeft:
    """A stopping criterion: True for each row that has written all it may."""

    def __init__(self, width: int, room: Sequence[int]) -> None:
        self._width, self._room = width, room

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        import torch

        del scores
        written = input_ids.shape[1] - self._width
        return torch.tensor([written >= room for room in self._room], device=input_ids.device)


def _refuse_what_only_vllm_does(settings: GenerateSettings) -> None:
    for name, given in (("output.structured", settings.output.structured), ("sampling.extra", settings.sampling.extra)):
        if given:
            raise RecipeError(
                f"generate.{name}: the transformers backend can't hold to it; take it out, or set generate.backend to "
                "'vllm', or to 'openai' with a server that can"
            )


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a text: the model's generation_config's and the tokenizer's, as vLLM has it."""
    named = model.generation_config.eos_token_id
    ids = [*named] if isinstance(named, (list, tuple)) else [named]
    return [i for i in dict.fromkeys([*ids, tokenizer.eos_token_id]) if i is not None]


@contextlib.contextmanager
def _own_config(model: Any, config: Any) -> Iterator[None]:
    """Put the model's generation_config aside: ``generate`` merges its sampling defaults into ours otherwise."""
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept
