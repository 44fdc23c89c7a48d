"""The differentiable weighted cross-entropy over rows: one meaning, several implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from obverse.kernels import launch, reference
from obverse.kernels.reference import RowLosses
from obverse.kernels.weight_rule import RowInputs, WeightRule, check_inputs

__all__ = ["row_losses", "total_loss"]


def row_losses(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    kernel: launch.Kernel = "auto",
) -> RowLosses:
    """`reference.row_losses`, by the implementation that `launch.choose` picks.

    ``logits`` [N, V] float, never changed; ``target`` int64 [N], or soft, float [N, V]; ``class_weight`` [V] and the
    rest [N], or None; all on one device. Columns must be contiguous (other layouts are copied); rows may have any
    stride. Hard targets are trusted: out of range they make the row's loss NaN. No host synchronisation on a
    device. Differentiable any number of times: a gradient's own gradient goes through the reference.

    Raises ValueError for shapes, dtypes, devices or a missing input that can't work.
    """
    inputs = RowInputs(sample_weight, log_quality, log_diversity, class_weight)
    kernel_name = _prepare(logits, target, rule, inputs, kernel)
    if kernel_name == "reference":
        return reference.row_losses(logits, target, rule, **inputs._asdict())
    from obverse.kernels import ops

    loss, fields, clipped = ops.ce_forward(*_arguments(logits, target, rule, inputs), kernel_name)
    return _rows(loss, fields, clipped, target, rule)


def total_loss(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    denominator: Tensor | None = None,
    inplace: bool = False,
    kernel: launch.Kernel = "auto",
) -> tuple[Tensor, RowLosses]:
    """The sum of the row losses over ``denominator`` (one element; None: the number of counted rows), 0 over 0.

    Where a gradient will be wanted it is made in the same pass over the logits, and the backward pass hands it on:
    scaled, if what comes from above is not 1. The second value is detached. With ``inplace`` the gradient takes
    the logits' own memory: nothing of their size is made, and they must not be used again (autograd refuses it).

    Inputs and errors as `row_losses`. ``inplace`` is refused for the reference and for logits whose rows overlap.
    """
    inputs = RowInputs(sample_weight, log_quality, log_diversity, class_weight)
    kernel_name = _prepare(logits, target, rule, inputs, kernel)
    wanted = logits.requires_grad and torch.is_grad_enabled()
    if inplace and (kernel_name == "reference" or (wanted and logits.is_leaf) or _overlaps(logits)):
        raise ValueError(
            "inplace: expected logits that an operation made, with rows of their own, and a kernel other than the "
            f"reference, saw {'a leaf, ' * logits.is_leaf}strides {list(logits.stride())}, kernel {kernel_name!r}"
        )
    if not wanted or kernel_name == "reference":
        named = inputs._asdict()
        rows = row_losses(logits, target, rule, **named, kernel=kernel)
        return reference.divided_total(rows, denominator), rows._replace(loss=rows.loss.detach())
    from obverse.kernels import ops

    arguments = (*_arguments(logits, target, rule, inputs), kernel_name)
    if inplace:
        total, fields, clipped = ops.TotalInPlace.apply(denominator, *arguments)  # type: ignore[no-untyped-call]
    else:
        total, fields, clipped, _ = ops.total(*arguments, denominator)
    return total, _rows(fields[0], fields, clipped, target, rule)


def _rows(loss: Tensor, fields: Tensor, clipped: Tensor, target: Tensor, rule: WeightRule) -> RowLosses:
    counted = torch.ones_like(clipped, dtype=torch.bool) if target.is_floating_point() else target != rule.ignore_index
    return RowLosses(loss, fields[1], fields[2], fields[3], clipped, counted)


def _arguments(logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs) -> tuple[Any, ...]:
    """What the operators take: unit column strides, float32 weights without a gradient."""
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    if target.is_floating_point():
        target = target.detach().to(logits.dtype if target.dtype == torch.float64 else target.dtype)
    weights = (None if v is None else v.detach().to(torch.float32).contiguous() for v in inputs)
    return (logits, target.contiguous(), *weights, *rule)


def _overlaps(logits: Tensor) -> bool:
    num_rows, num_columns = logits.shape
    return (num_columns > 1 and logits.stride(1) != 1) or (num_rows > 1 and logits.stride(0) < num_columns)


def _prepare(
    logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, kernel: launch.Kernel
) -> launch.Implementation:
    given = {name: values for name, values in inputs._asdict().items() if values is not None}
    _check(logits, target, rule, given)
    others = [*given.values(), *([target] if target.is_floating_point() else [])]
    weight_gradients = torch.is_grad_enabled() and any(v.requires_grad for v in others)
    return launch.choose(kernel, logits, weight_gradients=weight_gradients)


def _check(logits: Tensor, target: Tensor, rule: WeightRule, given: dict[str, Tensor]) -> None:
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        raise ValueError(f"logits: expected a float tensor [N, V >= 1], saw {logits.dtype} {list(logits.shape)}")
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(f"target: expected float {list(logits.shape)}, saw {target.dtype} {list(target.shape)}")
        if rule.scheme == "focal":
            raise ValueError("target: scheme 'focal' takes class indices (int64 [N]), saw soft labels")
    elif target.shape != logits.shape[:1] or target.dtype != torch.int64:
        raise ValueError(f"target: expected int64 [{logits.shape[0]}], saw {target.dtype} {list(target.shape)}")
    check_inputs(rule.scheme, set(given))
    for name, values in given.items():
        expected = logits.shape[1:] if name == "class_weight" else logits.shape[:1]
        if values.shape != expected or not values.is_floating_point():
            raise ValueError(f"{name}: expected float {list(expected)}, saw {values.dtype} {list(values.shape)}")
    for name, values in {"target": target, **given}.items():
        if values.device != logits.device:
            raise ValueError(f"{name}: expected on {logits.device} as the logits are, saw {values.device}")
