"""From prompts to output ids: a greedy loop that retires finished rows, and Hugging Face's search for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obverse.engine.decode.processor import ConstrainedLogitsProcessor, choose_allowed
from obverse.engine.decode.settings import DecodeSettings
from obverse.engine.records.forward import pad_rows
from obverse.engine.records.sequence import SequenceFormat

if TYPE_CHECKING:
    from torch import Tensor

    from obverse._core import Constraint, Subset

__all__ = ["search"]

# A batch is made smaller once this share of its rows has ended: each time, its cache is copied once.
RETIRE_SHARE = 0.25


def search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    form: SequenceFormat,
    settings: DecodeSettings,
    constraint: Constraint | None,
    subsets: Sequence[Subset | None] | None = None,
) -> list[list[int]]:
    """Output ids of each prompt, through the end-of-sequence token or, without it, to ``max_new_tokens``.

    With ``subsets``, one a prompt, an output may hold only those entities. Greedy decoding of decoder-only models runs
    in a loop of ours in which rows that have ended leave the batch; beams and encoder-decoder models run in
    ``model.generate``.
    """
    greedy = settings.num_beams == 1 and form.architecture == "decoder"
    if greedy and "position_ids" in inspect.signature(model.forward).parameters:
        return _Greedy(model, prompts, form, constraint, subsets).run(settings.max_new_tokens)
    return _generate(model, prompts, form, settings, constraint, subsets)


class _Greedy:
    """One batch, padded on the left so that all rows write in the same column."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        form: SequenceFormat,
        constraint: Constraint | None,
        subsets: Sequence[Subset | None] | None,
    ) -> None:
        import torch
        from transformers import DynamicCache

        self.model, self.form, self.constraint = model, form, constraint
        self.device = next(model.parameters()).device
        ids, mask = pad_rows(prompts, form.pad_id, left=True)
        self.input_ids, self.mask = ids.to(self.device), mask.to(self.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config)
        self.outputs: list[list[int]] = [[] for _ in prompts]
        self.rows = list(range(len(prompts)))
        """Which prompt each row of the batch is."""
        self.live = torch.ones(len(prompts), dtype=torch.bool)
        self.matchers = self._matchers(subsets or [None] * len(prompts))

    def _matchers(self, subsets: Sequence[Subset | None]) -> list[Any]:
        from obverse._core import Matcher

        return [] if self.constraint is None else [Matcher(self.constraint, subset=subset) for subset in subsets]

    def run(self, max_new_tokens: int) -> list[list[int]]:
        """All rows to their end."""
        import torch

        for _ in range(max_new_tokens):
            logits = self.model(
                input_ids=self.input_ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = self._choose(logits)
            if not bool(self.live.any()):
                break
            self.input_ids = tokens[:, None].to(self.device)
            self.positions = self.positions[:, -1:] + 1
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
            if float(self.live.float().mean()) <= 1 - RETIRE_SHARE:
                self._retire()
        return self.outputs

    def _choose(self, logits: Tensor) -> Tensor:
        """The likeliest allowed token of each row [B]; notes it, and which rows have ended."""
        import torch

        if self.matchers:
            tokens = torch.from_numpy(choose_allowed(self.matchers, logits)).long()
        else:
            tokens = logits.argmax(-1).cpu()
        for place, token in enumerate(tokens.tolist()):
            if not self.live[place]:
                continue
            self.outputs[self.rows[place]].append(token)
            if token == self.form.eos_id:
                self.live[place] = False
            if self.matchers:
                self.matchers[place].accept(token)
        return tokens

    def _retire(self) -> None:
        """Take the rows that have ended out of the batch and its cache."""
        kept = self.live.nonzero()[:, 0]
        places = kept.to(self.device)
        self.cache.batch_select_indices(places)
        self.input_ids, self.mask, self.positions = (
            part[places] for part in (self.input_ids, self.mask, self.positions)
        )
        self.rows = [self.rows[i] for i in kept.tolist()]
        if self.matchers:
            self.matchers = [self.matchers[i] for i in kept.tolist()]
        self.live = self.live[kept]


def _generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    form: SequenceFormat,
    settings: DecodeSettings,
    constraint: Constraint | None,
    subsets: Sequence[Subset | None] | None = None,
) -> list[list[int]]:
    from transformers import GenerationConfig, LogitsProcessorList

    device = next(model.parameters()).device
    encoder = form.architecture == "encoder_decoder"
    ids, mask = pad_rows(prompts, form.pad_id, left=not encoder)
    start = 1 if encoder else ids.shape[1]
    processors = LogitsProcessorList()
    if constraint is not None:
        processors.append(ConstrainedLogitsProcessor(constraint, prompt_length=start, subsets=subsets))
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty if settings.num_beams > 1 else None,
        do_sample=False,
        pad_token_id=form.pad_id,
        eos_token_id=form.eos_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    written = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=processors,
    )
    return [_through_eos(row, form.eos_id) for row in written[:, start:].tolist()]


def _through_eos(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
