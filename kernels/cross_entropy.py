"""The differentiable weighted cross-entropy over rows: one autograd function, several implementations."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from obverse.kernels import blocked_ce, launch, reference
from obverse.kernels.reference import RowLosses
from obverse.kernels.weight_rule import WeightRule, check_inputs

__all__ = ["row_losses"]


def row_losses(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    kernel: launch.Kernel = "auto",
) -> RowLosses:
    """`reference.row_losses`, by the implementation that `launch.choose` picks.

    ``logits`` [N, V] float, never changed; ``target`` [N] int64; the rest [N] or None, on one device. Columns
    must be contiguous (other layouts are copied); rows may have any stride. Targets are trusted: out of range
    they give NaN (Triton) or torch's own error (the others). No host synchronisation on a device. Differentiable
    any number of times: with ``create_graph=True`` the backward pass goes through the reference.

    Raises ValueError for shapes, dtypes, devices or a missing input that can't work.
    """
    given = {"sample_weight": sample_weight, "log_quality": log_quality, "log_diversity": log_diversity}
    _check(logits, target, rule, given)
    weight_gradients = any(v is not None and v.requires_grad for v in given.values()) and torch.is_grad_enabled()
    implementation = launch.choose(kernel, logits, weight_gradients=weight_gradients)
    if implementation == "reference":
        return reference.row_losses(logits, target, rule, **given)
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    plain = {name: None if v is None else v.detach().to(dtype).contiguous() for name, v in given.items()}
    out = _RowLosses.apply(  # type: ignore[no-untyped-call]
        logits, target.contiguous(), rule, implementation == "triton", *plain.values()
    )
    loss, weight, log_prob, lse, clipped = cast("tuple[Tensor, ...]", out)
    return RowLosses(loss, weight, log_prob, lse, clipped, target != rule.ignore_index)


def _check(logits: Tensor, target: Tensor, rule: WeightRule, given: dict[str, Tensor | None]) -> None:
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        raise ValueError(f"logits: expected a float tensor [N, V >= 1], saw {logits.dtype} {list(logits.shape)}")
    if target.shape != logits.shape[:1] or target.dtype != torch.int64:
        raise ValueError(f"target: expected int64 [{logits.shape[0]}], saw {target.dtype} {list(target.shape)}")
    check_inputs(rule.scheme, {name for name, values in given.items() if values is not None})
    for name, values in given.items():
        if values is not None and (values.shape != target.shape or not values.is_floating_point()):
            raise ValueError(f"{name}: expected float {list(target.shape)}, saw {values.dtype} {list(values.shape)}")
    for name, values in {"target": target, **given}.items():
        if values is not None and values.device != logits.device:
            raise ValueError(f"{name}: expected on {logits.device} as the logits are, saw {values.device}")


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, rule: WeightRule, triton: bool, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.rule, ctx.triton = rule, triton
        rows, clipped = _implementation(triton).forward_rows(logits.detach(), target, rule, *weights)
        ctx.save_for_backward(logits, target, rows, *weights)
        ctx.set_materialize_grads(False)
        # The loss is copied out: a caller may change it in place, and the saved numbers must not change with it.
        loss, weight, log_prob, lse = rows[0].clone(), *(rows[i].detach() for i in (1, 2, 3))
        ctx.mark_non_differentiable(weight, log_prob, lse, clipped)
        return loss, weight, log_prob, lse, clipped

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None or not ctx.needs_input_grad[0]:
            return (None,) * 7
        logits, target, rows, sample_weight, log_quality, log_diversity = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself must be differentiable
            again = reference.row_losses(
                logits,
                target,
                ctx.rule,
                sample_weight=sample_weight,
                log_quality=log_quality,
                log_diversity=log_diversity,
            )
            (gradient,) = torch.autograd.grad(again.loss, logits, upstream, create_graph=True)
            return (gradient, *(None,) * 6)
        gradient = _implementation(ctx.triton).backward_rows(logits.detach(), target, ctx.rule, rows, upstream)
        return (gradient, *(None,) * 6)


def _implementation(triton: bool) -> Any:
    if triton:
        from obverse.kernels import weighted_ce

        return weighted_ce
    return blocked_ce
