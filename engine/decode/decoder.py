"""Predictions of a trained model for rows of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.forms import read_facts
from obverse.engine.decode.rules import TripletRules, mentioned
from obverse.engine.decode.search import search
from obverse.engine.decode.settings import DecodeSettings
from obverse.engine.errors import InputError
from obverse.engine.records.forward import answer_token_log_probs, can_gather, collate, pad_rows
from obverse.engine.records.linearise import Triple
from obverse.engine.records.models import (
    context_length,
    load_classifier,
    load_sequence_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    quiet_transformers,
    read_card,
    sequence_format,
)
from obverse.engine.records.schemas import PREDICTIONS, TRIPLETS, require_columns
from obverse.engine.records.sequence import Example

if TYPE_CHECKING:
    import torch

    from obverse._core import Subset

__all__ = ["decode_rows"]


def decode_rows(
    model_dir: Path,
    rows: pa.Table,
    settings: DecodeSettings,
    *,
    catalog: Catalog | None = None,
    constrained: bool = False,
    rules: TripletRules | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Predict triplets or a label for each row, as a ``PREDICTIONS`` table in the rows' order.

    ``log_prob`` is log p of the label, or the mean log p per token of the output (its end-of-sequence token
    counted), always under the model itself, without the constraint. Predicted names are linked to URIs through
    the catalogue: of a name with several URIs the first in the source table; a name it lacks has none.

    Args:
        model_dir: a folder that `train_model` wrote.
        rows: id, text, and, if known, triplets or label (the gold).
        settings: see `DecodeSettings`; ``settings.constrained`` is the caller's to loop over.
        catalog: names and URIs; needed when ``constrained``, else it only links.
        constrained: write nothing but the catalogue's names.
        rules: which triplets of them, when ``constrained``; see also ``settings``.
        on_progress: called with rows newly done.

    Raises:
        InputError: a column is missing, a text is null, or ``constrained`` without a catalogue for the model's
            tokenizer.
    """
    require_columns(rows, "id", "text", what="decode")
    texts = rows["text"].to_pylist()
    if None in texts:
        raise InputError("a text", row=texts.index(None), field="text", seen="null")
    card = read_card(model_dir)
    advance = on_progress or (lambda _: None)
    if card["task"] == "classification":
        if constrained:
            raise InputError("constrained=False for a classifier: its labels are a closed set", field="constrained")
        return _classify(model_dir, rows, texts, settings, card, advance)
    return _Extractor(model_dir, settings, card, catalog, constrained, rules).predict(rows, texts, advance)


class _Extractor:
    """A loaded model with its constraint."""

    def __init__(
        self,
        folder: Path,
        settings: DecodeSettings,
        card: dict[str, Any],
        catalog: Catalog | None,
        constrained: bool,
        rules: TripletRules | None,
    ) -> None:
        self.settings, self.catalog, self.device = settings, catalog, pick_device()
        self.dtype = pick_dtype(settings.dtype, self.device)
        tokenizer = load_tokenizer(folder)
        self.model = load_sequence_model(folder, dtype=self.dtype).to(self.device)
        self.form = sequence_format(tokenizer, self.model.config, card["form"])
        self.constraint = None
        if constrained:
            if catalog is None:
                raise InputError("a catalogue (constrained decoding writes only its names)", field="catalog")
            self.constraint = catalog.constraint(
                self.form,
                int(self.model.config.vocab_size),
                max_triplets=settings.max_triplets,
                unique=settings.unique,
                **({} if rules is None else vars(rules)),
            )
        self.limit = self._prompt_limit(card)

    def _prompt_limit(self, card: dict[str, Any]) -> int | None:
        """Most prompt tokens, so that prompt and output fit the model together."""
        context = context_length(self.model.config)
        if context is None:
            return int(card["settings"]["max_length"])
        if self.form.architecture == "encoder_decoder":
            return context
        room = context - self.settings.max_new_tokens
        if room < 8:
            raise InputError(
                f"at most {context - 8} (the model reads {context} tokens in all)",
                field="max_new_tokens",
                seen=self.settings.max_new_tokens,
            )
        return room

    def predict(self, rows: pa.Table, texts: list[str], advance: Callable[[int], None]) -> pa.Table:
        import torch

        prompts = [self.form.prompt_ids(text, self.limit) for text in texts]
        outputs: list[list[int]] = [[]] * len(prompts)
        log_probs = np.zeros(len(prompts), dtype=np.float32)
        gather: bool | None = None
        subsets = self._subsets(texts)
        with torch.inference_mode(), quiet_transformers():
            for batch in _batches(prompts, self.settings.batch_size):
                chosen = [prompts[i] for i in batch]
                limits = None if subsets is None else [subsets[i] for i in batch]
                found = search(self.model, chosen, self.form, self.settings, self.constraint, limits)
                examples = [Example([*p, *o], len(p)) for p, o in zip(chosen, found, strict=True)]
                scored = collate(
                    examples,
                    self.form,
                    device=self.device,
                    decoder_start=getattr(self.model.config, "decoder_start_token_id", None),
                )
                gather = can_gather(self.model, scored) if gather is None else gather
                log_probs[batch] = answer_token_log_probs(self.model, scored, gather=gather).cpu().numpy()
                for place, output in zip(batch, found, strict=True):
                    outputs[place] = output
                advance(len(batch))
        return _predictions(
            rows,
            predicted=_link([self._read(ids) for ids in outputs], self.catalog),
            output=[self.form.decode(ids) for ids in outputs],
            log_prob=log_probs,
        )

    def _subsets(self, texts: list[str]) -> list[Subset] | None:
        """The entities that each text mentions, where nothing else may be written."""
        if not self.settings.only_mentioned or self.constraint is None or self.catalog is None:
            return None
        return [mentioned(self.catalog, text) for text in texts]

    def _read(self, ids: list[int]) -> list[Triple]:
        """Triples of an output: by its names' tokens where it was constrained, else by its words."""
        if self.constraint is None or self.catalog is None:
            return self.form.triples(ids)
        return read_facts(ids, self.constraint, self.catalog)


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Rows in batches of like length, longest first."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _link(triples: list[list[Triple]], catalog: Catalog | None) -> pa.Array:
    """Triples as a ``triplets`` column, each name with its URI where the catalogue has one."""
    flat = [triple for row in triples for triple in row]
    columns = {}
    for role in ("subject", "predicate", "object"):
        names = [getattr(triple, role) for triple in flat]
        uris: list[str | None] = [None] * len(names)
        index = None if catalog is None else catalog.relations if role == "predicate" else catalog.entities
        if index is not None:
            uris = index.link(names)
        pairs = [pa.array(uris, pa.string()), pa.array(names, pa.string())]
        columns[role] = pa.StructArray.from_arrays(pairs, ["uri", "surfaceform"])
    values = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in triples])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values).cast(TRIPLETS)


def _classify(
    folder: Path,
    rows: pa.Table,
    texts: list[str],
    settings: DecodeSettings,
    card: dict[str, Any],
    advance: Callable[[int], None],
) -> pa.Table:
    import torch

    device = pick_device()
    tokenizer = load_tokenizer(folder)
    model = load_classifier(folder, dtype=pick_dtype(settings.dtype, device)).to(device)
    encoded = tokenizer(texts, truncation=True, max_length=card["settings"]["max_length"])["input_ids"] if texts else []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    best = np.zeros(len(texts), dtype=np.int64)
    log_probs = np.zeros(len(texts), dtype=np.float32)
    with torch.inference_mode():
        for batch in _batches(encoded, settings.batch_size):
            ids, mask = pad_rows([encoded[i] for i in batch], int(pad or 0))
            logits: torch.Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            values, places = logits.float().log_softmax(-1).max(-1)
            best[batch], log_probs[batch] = places.cpu().numpy(), values.cpu().numpy()
            advance(len(batch))
    labels = [card["labels"][i] for i in best]
    return _predictions(rows, predicted_label=labels, output=labels, log_prob=log_probs)


def _predictions(rows: pa.Table, **found: Any) -> pa.Table:
    columns: dict[str, Any] = {"id": rows["id"], "text": rows["text"], **found}
    for name, source in (("gold", "triplets"), ("gold_label", "label")):
        if source in rows.column_names:
            columns[name] = rows[source]
    arrays = []
    for field in PREDICTIONS:
        value = columns.get(field.name)
        if value is None:
            value = pa.nulls(rows.num_rows, field.type)
        elif not isinstance(value, pa.Array | pa.ChunkedArray):
            value = pa.array(value, field.type)
        arrays.append(value.cast(field.type))
    return pa.table(arrays, schema=PREDICTIONS)
