"""The losses inside the Trainer of Hugging Face transformers: a mix-in, and a plain ``compute_loss_func``.

``Trainer(compute_loss_func=f)`` calls f with the outputs and the labels only, never with the batch: a loss that needs
one number a row (sample weights; IMP and DIMP, which need log q) can't be written as such a function. The mix-in
takes those numbers out of each batch before the model sees it. transformers is imported when a class is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from obverse.engine.errors import InputError, MissingPackageError
from obverse.engine.losses.modules import WeightedCrossEntropy

__all__ = ["WEIGHT_COLUMNS", "WeightedLossMixin", "compute_loss_func", "weighted_trainer"]

WEIGHT_COLUMNS = ("sample_weight", "log_quality", "log_diversity", "sample_id")
"""Columns of a batch that the loss takes; each is an input of `weighted_cross_entropy` of the same name."""

_NEEDED = {"sample_weight": ("sample_weight",), "imp": ("log_quality", "log_diversity"), "dimp": ("log_quality",)}


def compute_loss_func(
    loss: WeightedCrossEntropy, *, class_weight: Tensor | None = None, shift_labels: bool = False
) -> Callable[..., Tensor]:
    """A function for ``Trainer(compute_loss_func=...)``, for losses without weights by row: plain and focal.

    Args:
        loss: the loss, reduction mean, ``ignore_index`` -100 (by which the Trainer counts).
        class_weight: [V], or None.
        shift_labels: whether position t of the logits predicts label t + 1, as causal language models do.

    The Trainer gives the labels that it has taken from the model. Encoder-decoder models make their decoder's input
    from them: use `WeightedLossMixin` for those, or a collator that adds ``decoder_input_ids``.

    Raises `InputError` for a scheme that needs a weight by row, and for settings that the Trainer can't keep.
    """
    _check_loss(loss, "loss")
    if loss.scheme in _NEEDED:
        raise InputError("scheme plain or focal (the others: weighted_trainer)", field="loss", seen=loss.scheme)
    if _normalised(loss):
        # Such a loss is a mean over one micro-batch; only the mix-in knows how many there are.
        raise InputError("normalisation none (else: weighted_trainer)", field="loss", seen=loss.settings)

    def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        target = _shifted(labels, -100) if shift_labels else labels
        weights = {} if class_weight is None else {"class_weight": class_weight.to(labels.device)}
        total: Tensor = loss(_logits(outputs), target, num_items=num_items_in_batch, **weights)
        return total

    return loss_of


class _Batch(NamedTuple):
    loss: WeightedCrossEntropy
    target: Tensor
    inputs: dict[str, Tensor]
    parts: int
    """How many micro-batches one optimiser step has."""


class WeightedLossMixin:
    """Gives `Trainer` and `Seq2SeqTrainer` a weighted loss; put it before them in a class's bases.

    ::

        class DimpTrainer(WeightedLossMixin, Trainer): ...
        DimpTrainer(model, args, train_dataset=rows, loss=WeightedCrossEntropy("dimp"))     # rows have log_quality

    Rows may have the columns `WEIGHT_COLUMNS`: one number a row (or, padded as the labels are, one a token). They are
    kept in spite of ``remove_unused_columns`` and taken out before the model is called. Labels are [B] for
    classification and [B, T], padded with -100, for tokens. The model never computes its own loss; encoder-decoder
    models get ``decoder_input_ids`` made from the labels by their own method.

    Gradient accumulation: the loss of each micro-batch is its sum over the counted items of the *whole* step, so that
    1 x 8 rows and 4 x 2 rows give one gradient. A loss with a normalisation knows its own micro-batch alone; the step
    takes the mean over them.

    Evaluation: the loss is ``eval_loss``, by default the same loss; batches without the columns that it needs (real
    rows have no log q) get the unweighted cross-entropy. With ``predict_with_generate`` too.

    Args:
        loss: reduction mean, ``ignore_index`` -100.
        eval_loss: the loss of evaluation; None: see above.
        class_weight: [V], or None.
        shift_labels: whether position t of the logits predicts label t + 1. None: as the Trainer finds for the model
            (causal language models do).
        columns: names of the batch's columns by the loss's input, where they differ, as ``{"log_quality": "logq"}``.

    All other arguments are the Trainer's. Raises `InputError` for ``compute_loss_func`` and for
    ``label_smoothing_factor`` in the arguments (give the loss ``label_smoothing``), which it would not heed.
    """

    def __init__(
        self,
        *args: Any,
        loss: WeightedCrossEntropy,
        eval_loss: WeightedCrossEntropy | None = None,
        class_weight: Tensor | None = None,
        shift_labels: bool | None = None,
        columns: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, given in (("loss", loss), ("eval_loss", eval_loss)):
            if given is not None:
                _check_loss(given, name)
        wrong = set(columns or {}) - set(WEIGHT_COLUMNS)
        if wrong:
            raise InputError(f"names out of {', '.join(WEIGHT_COLUMNS)}", field="columns", seen=sorted(wrong))
        if kwargs.get("compute_loss_func") is not None:
            raise InputError("no compute_loss_func beside loss", field="compute_loss_func")
        self.loss = loss
        self.eval_loss = eval_loss
        self.class_weight = class_weight
        self.weight_columns = {name: (columns or {}).get(name, name) for name in WEIGHT_COLUMNS}
        self._pending: list[_Batch] = []
        # The Trainer leaves a step's loss undivided, and counts its items, where it has such a function.
        super().__init__(*args, **{**kwargs, "compute_loss_func": self._loss_of})
        if getattr(self, "label_smoother", None) is not None:
            raise InputError("label_smoothing in the loss", field="label_smoothing_factor", seen="one in the arguments")
        if shift_labels is None:
            shift_labels = getattr(self, "_loss_shifts_labels", None)
        self.shift_labels = _shifts(self.model) if shift_labels is None else shift_labels  # type: ignore[attr-defined]

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss of a batch, and with ``return_outputs`` also the model's outputs."""
        batch, weights = self._split(inputs)
        if "labels" not in batch and "shift_labels" not in batch:
            raise InputError("a column of labels in the batch", field="labels", seen=sorted(batch))
        target, weights = self._targets(batch, weights)
        batch.pop("shift_labels", None)
        batch["labels"] = batch.get("labels", target)
        self._add_decoder_input(model, batch)
        loss = self._loss_for(model.training, weights)
        inputs_of_loss = {name: values for name, values in weights.items() if _takes(loss, name)}
        parts = int(getattr(self, "current_gradient_accumulation_steps", 1)) if model.training else 1
        self._pending.append(_Batch(loss, target, inputs_of_loss, parts))
        # A normalised loss has no use for the count, and the Trainer would scale it by the number of processes.
        count = None if _normalised(loss) else num_items_in_batch
        total, outputs = super().compute_loss(model, batch, return_outputs=True, num_items_in_batch=count)  # type: ignore[misc]
        if self._pending:
            self._pending.clear()
            raise InputError("a Trainer that calls compute_loss_func", field="loss", seen="another path to the loss")
        if not return_outputs:
            return total
        # A tuple of outputs is taken to begin with the loss.
        return total, outputs if isinstance(outputs, Mapping) else (total, *outputs)

    def prediction_step(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> Any:
        """Loss, logits (or generated tokens) and labels of a batch of evaluation."""
        given, step = (model, inputs, prediction_loss_only), super().prediction_step  # type: ignore[misc]
        batch, _ = self._split(inputs)
        labels = batch.get("labels")
        if labels is None:
            return step(model, batch, *given[2:], ignore_keys=ignore_keys, **options)
        if prediction_loss_only or not getattr(self.args, "predict_with_generate", False):  # type: ignore[attr-defined]
            return step(*given, ignore_keys=ignore_keys, **options)
        # Generation is given neither labels nor what was made of them, else it would go on from the answer.
        made = batch.get("decoder_input_ids")
        left_out = {"labels"}
        if made is not None and made.shape == labels.shape:
            left_out |= {"decoder_input_ids", "decoder_attention_mask"}
        free = {name: values for name, values in batch.items() if name not in left_out}
        _, generated, _ = step(model, free, False, ignore_keys=ignore_keys, **options)
        ready = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            count = self._get_num_items_in_batch([ready], self.args.device)  # type: ignore[attr-defined]
            loss = self.compute_loss(model, ready, num_items_in_batch=count)
        return loss.detach().mean(), generated, ready["labels"]

    def _loss_of(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The Trainer's ``compute_loss_func``: the loss of the batch that `compute_loss` has put by."""
        del labels  # the target has been shifted since
        loss, target, inputs, parts = self._pending.pop()
        logits = _logits(outputs)
        if self.class_weight is not None:
            inputs = {**inputs, "class_weight": self.class_weight.to(logits.device)}
        total: Tensor = loss(logits, target, num_items=num_items_in_batch, **inputs)
        # Without a count each micro-batch has its own mean.
        return total if num_items_in_batch is not None else total / parts

    def _split(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the model gets of a batch, and what the loss does, by the loss's names."""
        batch = dict(inputs)
        found = {name: batch.pop(column, None) for name, column in self.weight_columns.items()}
        return batch, {name: _as_input(name, values) for name, values in found.items() if values is not None}

    def _targets(self, batch: Mapping[str, Any], weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The target of each row of logits, and the weights beside it."""
        if "shift_labels" in batch:  # the collator has done it
            return batch["shift_labels"], weights
        labels: Tensor = batch["labels"]
        if not self.shift_labels:
            return labels, weights
        moved = {name: _shifted(w, 0) if w.shape == labels.shape else w for name, w in weights.items()}
        return _shifted(labels, -100), moved

    def _add_decoder_input(self, model: Any, batch: dict[str, Any]) -> None:
        own = self.accelerator.unwrap_model(model)  # type: ignore[attr-defined]
        apart = getattr(getattr(own, "config", None), "is_encoder_decoder", False)
        if not apart or batch["labels"].ndim < 2 or {"decoder_input_ids", "decoder_inputs_embeds"} & batch.keys():
            return
        make = getattr(own, "prepare_decoder_input_ids_from_labels", None)
        if make is None:
            raise InputError("decoder_input_ids in the batch (this model can't make them)", field="decoder_input_ids")
        batch["decoder_input_ids"] = make(labels=batch["labels"])

    def _loss_for(self, training: bool, weights: Mapping[str, Tensor]) -> WeightedCrossEntropy:
        if training:
            return self.loss
        loss = self.loss if self.eval_loss is None else self.eval_loss
        if all(name in weights for name in _NEEDED.get(loss.scheme, ())):
            return loss
        kept = {name: value for name, value in loss.settings.items() if name in ("kernel", "check")}
        return WeightedCrossEntropy("plain", **kept)  # type: ignore[arg-type]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        kept: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*kept, *(c for c in self.weight_columns.values() if c not in kept)]

    def _get_num_items_in_batch(self, batch_samples: Sequence[Any], device: torch.device) -> Any:
        """The Trainer's count of a step's items, of the targets as the loss has them."""
        has_labels = bool(batch_samples) and all("labels" in b or "shift_labels" in b for b in batch_samples)
        if has_labels:
            targets = [self._targets(batch, {})[0] for batch in batch_samples]
            # Both names: as shift_labels they are counted as they are, which older releases do with labels.
            batch_samples = [{"labels": target, "shift_labels": target} for target in targets]
        # Older releases count elsewhere, and in evaluation not at all.
        count = getattr(super(), "_get_num_items_in_batch", None)
        return None if count is None else count(batch_samples, device)


def weighted_trainer(base: type[Any] | None = None) -> type[Any]:
    """`WeightedLossMixin` before ``base``, by default `transformers.Trainer`.

    ``weighted_trainer()(model, args, train_dataset=rows, loss=WeightedCrossEntropy("dimp"))`` trains with DIMP-Loss.
    Raises `MissingPackageError` where accelerate, which the Trainer needs, is not installed.
    """
    if base is None:
        if importlib.util.find_spec("accelerate") is None:
            raise MissingPackageError("accelerate", needed_for="transformers' Trainer", extra="trainer")
        from transformers import Trainer

        base = Trainer
    return type(f"Weighted{base.__name__}", (WeightedLossMixin, base), {"__doc__": WeightedLossMixin.__doc__})


def _check_loss(loss: Any, name: str) -> None:
    if not isinstance(loss, WeightedCrossEntropy):
        raise InputError("a WeightedCrossEntropy", field=name, seen=type(loss).__name__)
    reduction, ignored = loss.settings.get("reduction", "mean"), loss.settings.get("ignore_index", -100)
    if reduction != "mean" or ignored != -100:
        seen = f"reduction {reduction}, ignore_index {ignored}"
        raise InputError("reduction mean and ignore_index -100, by which the Trainer counts", field=name, seen=seen)


def _normalised(loss: WeightedCrossEntropy) -> bool:
    return loss.settings.get("normalisation", "none") != "none"


def _takes(loss: WeightedCrossEntropy, name: str) -> bool:
    if name == "sample_weight":
        return loss.scheme != "plain"
    # A sample id also says which tokens make a sequence.
    return name == "sample_id" or name in _NEEDED.get(loss.scheme, ())


def _as_input(name: str, values: Tensor) -> Tensor:
    return values.to(torch.int64) if name == "sample_id" else values if values.is_floating_point() else values.float()


def _shifted(values: Tensor, last: int) -> Tensor:
    """[.., T] moved one to the left; the logits stay as they are, and their last position has no target."""
    return pad(values[..., 1:], (0, 1), value=last)


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits


def _shifts(model: Any) -> bool:
    """Whether a model's logits predict the next label, for releases of the Trainer that do not say."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    apart = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not apart and type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
