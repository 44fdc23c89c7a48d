"""`SequenceWeightedCrossEntropy`: token cross-entropy in which every sequence carries one weight."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from obverse.engine.errors import InputError
from obverse.engine.losses.inputs import check_logits, check_values
from obverse.engine.losses.settings import DEFAULT_CLIP
from obverse.kernels.cross_entropy import row_losses
from obverse.kernels.launch import Kernel
from obverse.kernels.reference import Normalisation, effective_sample_size, reduce_rows
from obverse.kernels.weight_rule import WeightRule, check_inputs, clip_log_weight, make_rule

__all__ = [
    "SequenceDiagnostics",
    "SequenceLogProb",
    "SequenceReduction",
    "SequenceScheme",
    "SequenceWeightedCrossEntropy",
]

SequenceScheme = Literal["plain", "sample_weight", "imp", "dimp"]
SequenceLogProb = Literal["mean", "sum"]
SequenceReduction = Literal["none", "sum", "mean", "token_mean"]


class SequenceDiagnostics(NamedTuple):
    """What the loss knew about its sequences; detached, [B] or scalar, no second pass and no host sync."""

    weight: Tensor
    """[B] weight of each sequence before normalisation; 0 where no token counts."""
    log_prob: Tensor
    """[B] log p of the sequence, mean or sum over its tokens as set."""
    num_tokens: Tensor
    """[B] int64, tokens that count."""
    clipped: Tensor
    """[B] int8: -1 where the weight was raised to the lower bound, 1 where lowered to the upper, else 0."""

    def effective_sample_size(self) -> Tensor:
        """(sum w)^2 / sum w^2, a scalar; 0 where every weight is 0."""
        return effective_sample_size(self.weight)

    def clipped_share(self) -> Tensor:
        """Share of the sequences with a counted token whose weight was clipped, a scalar."""
        return (self.clipped != 0).sum() / (self.num_tokens > 0).sum().clamp_min(1)


class SequenceWeightedCrossEntropy(nn.Module):
    """Cross-entropy of token logits [B, T, V] with one importance weight per sequence.

    With T_b the counted tokens of sequence b, e the label smoothing and ``log_prob`` = "mean" (default)::

        log p_b = (1 / T_b) sum_t log p(y_bt | y_b<t, x_b)                     ("sum": without 1 / T_b)
        l_b     = (1 / T_b) sum_t [-(1 - e) log p(y_bt|..) - e mean_j log p(j|..)]     ("sum": likewise)
        plain           w_b = 1
        sample_weight   w_b = s_b
        imp             w_b = s_b exp(clip(gamma (log q_b - log d_b)))         IMP-Loss,  arXiv 2410.21526
        dimp            w_b = s_b exp(clip(gamma (log q_b - sg(log p_b))))     DIMP-Loss, arXiv 2410.21526

    The papers define both for one label a text; the sequence level is the same ratio with the sequence for the
    label. Length-normalised, the ratio is the geometric mean per token: sums would make the weight of a text of
    100 tokens the 100th power of that, and clip nearly every row. ``log_quality`` and ``log_diversity`` must be
    normalised in the same way.

    ``reduction``: none [B]; sum; mean over the B sequences that count; token_mean,
    ``sum_b w_b sum_t l_bt / sum_b T_b``, which at w = 1 is the mean over tokens of common trainers (with
    ``normalisation="self"`` its denominator is ``sum_b w_b T_b``). ``normalisation``: none, batch (weights
    rescaled to mean 1 over the sequences that count), self (to sum 1); the table in
    `kernels.reference.reduce_rows` holds with sequences for rows. No sequence with a counted token gives 0.

    The caller shifts: position t of ``logits`` must predict ``target`` at t.
    """

    def __init__(
        self,
        scheme: SequenceScheme = "plain",
        *,
        log_prob: SequenceLogProb = "mean",
        gamma: float = 1.0,
        weight_clip: tuple[float, float] | None = DEFAULT_CLIP,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalisation: Normalisation = "none",
        reduction: SequenceReduction = "mean",
        kernel: Kernel = "auto",
        check: bool | None = None,
    ) -> None:
        super().__init__()
        for name, seen, allowed in (
            ("scheme", scheme, ("plain", "sample_weight", "imp", "dimp")),
            ("log_prob", log_prob, ("mean", "sum")),
            ("normalisation", normalisation, ("none", "batch", "self")),
            ("reduction", reduction, ("none", "sum", "mean", "token_mean")),
        ):
            if seen not in allowed:
                raise InputError(f"one of {', '.join(allowed)}", field=name, seen=seen)
        self.rule = make_rule(scheme, gamma=gamma, weight_clip=weight_clip, ignore_index=ignore_index)
        self.token_rule = make_rule("plain", label_smoothing=label_smoothing, ignore_index=ignore_index)
        self.log_prob: SequenceLogProb = log_prob
        self.normalisation: Normalisation = normalisation
        self.reduction: SequenceReduction = reduction
        self.kernel: Kernel = kernel
        self.check = check

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        log_quality: Tensor | None = None,
        log_diversity: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``logits`` [B, T, V] with ``target`` [B, T] int64; the weights' inputs are float [B].

        Returns float32 (float64 for float64 logits), a scalar or [B]. Raises `InputError` for shapes, dtypes,
        devices or values that can't work (values: as ``check`` says, see `weighted_cross_entropy`).
        """
        loss, _ = self.with_diagnostics(
            logits,
            target,
            sample_weight=sample_weight,
            log_quality=log_quality,
            log_diversity=log_diversity,
        )
        return loss

    def with_diagnostics(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        log_quality: Tensor | None = None,
        log_diversity: Tensor | None = None,
    ) -> tuple[Tensor, SequenceDiagnostics]:
        """`forward`'s loss and, from the same pass, its diagnostics."""
        given = {"sample_weight": sample_weight, "log_quality": log_quality, "log_diversity": log_diversity}
        self._check(logits, target, given)
        flat, labels = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
        tokens = row_losses(flat, labels, self.token_rule, kernel=self.kernel)
        num_tokens = tokens.counted.reshape(target.shape).sum(dim=1)
        lengths = num_tokens.clamp_min(1).to(tokens.loss.dtype)
        token_sum = tokens.loss.reshape(target.shape).sum(dim=1)
        log_prob = tokens.log_prob.reshape(target.shape).sum(dim=1)
        base = token_sum
        if self.log_prob == "mean":
            log_prob, base = log_prob / lengths, token_sum / lengths
        counted = num_tokens > 0
        weight, clipped = _sequence_weights(log_prob, counted, self.rule, given)
        held = weight.detach()
        if self.reduction == "token_mean":
            loss = _token_mean(weight * token_sum, held, num_tokens, self.normalisation)
        else:
            loss = reduce_rows(weight * base, held, counted, normalisation=self.normalisation, reduction=self.reduction)
        return loss, SequenceDiagnostics(held, log_prob, num_tokens, clipped)

    def _check(self, logits: Tensor, target: Tensor, given: dict[str, Tensor | None]) -> None:
        check_logits(logits, target)
        if logits.ndim != 3:
            raise InputError("token logits [B, T, V]", field="logits", seen=list(logits.shape))
        check_inputs(self.rule.scheme, {name for name, values in given.items() if values is not None})
        for name, values in given.items():
            if values is None:
                continue
            if values.shape != target.shape[:1] or not values.is_floating_point():
                seen = f"{values.dtype} {list(values.shape)}"
                raise InputError(f"a float tensor [{target.shape[0]}], one a sequence", field=name, seen=seen)
            if values.device != logits.device:
                raise InputError(f"a tensor on {logits.device}", field=name, seen=str(values.device))
        check_values(target, logits.shape[-1], self.rule.ignore_index, given, check=self.check)


def _sequence_weights(
    log_prob: Tensor, counted: Tensor, rule: WeightRule, given: dict[str, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Weight [B] and int8 [B] (-1 raised to the lower bound, 1 lowered to the upper), 0 where nothing counts."""
    weight = torch.ones_like(log_prob)
    clipped = torch.zeros_like(log_prob, dtype=torch.int8)
    log_quality, log_diversity = given["log_quality"], given["log_diversity"]
    if log_quality is not None:
        below = log_prob if log_diversity is None else log_diversity.to(log_prob.dtype)
        weight, clipped = clip_log_weight(log_quality.to(log_prob.dtype) - below, rule)
    sample_weight = given["sample_weight"]
    if sample_weight is not None:
        weight = weight * sample_weight.to(log_prob.dtype)
    return torch.where(counted, weight, 0.0), clipped * counted


def _token_mean(loss: Tensor, weight: Tensor, num_tokens: Tensor, normalisation: Normalisation) -> Tensor:
    """Mean over tokens, each carrying its sequence's weight; ``loss`` [B] is w_b times the sum over tokens."""
    if normalisation == "self":
        total = (weight * num_tokens).sum()
        return torch.where(total != 0, loss.sum() / torch.where(total != 0, total, 1.0), 0.0)
    summed = reduce_rows(loss, weight, num_tokens > 0, normalisation=normalisation, reduction="sum")
    return summed / num_tokens.sum().clamp_min(1)
