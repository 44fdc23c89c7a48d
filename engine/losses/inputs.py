"""The checks and shapes that the losses share: bad input becomes an `InputError` with the value seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from obverse.engine.errors import InputError

__all__ = ["check_hidden", "check_logits", "check_values", "per_row"]


def check_logits(logits: Tensor, target: Tensor) -> None:
    """Raise `InputError` unless ``logits`` is float [*shape, V] and ``target`` int64 [*shape] or float as the logits.

    Both must be on one device.
    """
    if not logits.is_floating_point() or logits.ndim < 2 or logits.shape[-1] < 1:
        raise InputError("a float tensor [..., V] with at least two dimensions", field="logits", seen=_seen(logits))
    soft = target.is_floating_point() and target.shape == logits.shape
    if not soft and (target.dtype != torch.int64 or target.shape != logits.shape[:-1]):
        expected = f"int64 class indices {list(logits.shape[:-1])} or soft labels, float {list(logits.shape)}"
        raise InputError(expected, field="target", seen=_seen(target))
    _check_device("target", target, logits.device, "the logits")


def check_hidden(hidden: Tensor, head_weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    """Raise `InputError` unless they can be a linear layer and its targets, on one device."""
    if not hidden.is_floating_point() or hidden.ndim < 2:
        raise InputError("a float tensor [..., D] with at least two dimensions", field="hidden", seen=_seen(hidden))
    if target.dtype != torch.int64 or target.shape != hidden.shape[:-1]:
        raise InputError(f"int64 class indices {list(hidden.shape[:-1])}", field="target", seen=_seen(target))
    width = hidden.shape[-1]
    if head_weight.ndim != 2 or head_weight.shape[1] != width or not head_weight.is_floating_point():
        raise InputError(f"a float tensor [V, {width}]", field="head_weight", seen=_seen(head_weight))
    if bias is not None and (bias.shape != head_weight.shape[:1] or not bias.is_floating_point()):
        raise InputError(f"a float tensor [{head_weight.shape[0]}]", field="bias", seen=_seen(bias))
    for name, values in {"target": target, "head_weight": head_weight, "bias": bias}.items():
        if values is not None:
            _check_device(name, values, hidden.device, "hidden")


def per_row(name: str, values: Tensor | None, target: Tensor, sample_id: Tensor | None = None) -> Tensor | None:
    """``values`` given per row (``target``'s shape) or per sample (its first dimension) as one flat vector.

    With ``sample_id`` (int64, ``target``'s shape) the values are one a sample, and each row takes its own.
    """
    if values is None:
        return None
    _check_device(name, values, target.device, "the logits")
    if sample_id is not None:
        if not values.is_floating_point() or values.ndim != 1:
            raise InputError("a float tensor [S], one a sample (sample_id is given)", field=name, seen=_seen(values))
        return values[sample_id.reshape(-1)]
    whole = values.shape == target.shape
    if not values.is_floating_point() or not (whole or values.shape == target.shape[:1]):
        expected = f"a float tensor {list(target.shape)} or {list(target.shape[:1])}"
        raise InputError(expected, field=name, seen=_seen(values))
    if whole:
        return values.reshape(-1)
    return values.reshape(-1, *[1] * (target.ndim - 1)).expand(target.shape).reshape(-1)


def check_values(
    target: Tensor, num_classes: int, ignore_index: int, given: dict[str, Tensor | None], *, check: bool | None
) -> None:
    """Raise `InputError` for a target outside the classes or a value that is not finite, naming the first row.

    ``check`` None looks at tensors on the CPU only: elsewhere a look at the values would stop the device. A
    compiled graph is never looked into, nor what torch.vmap maps over.
    """
    if check is False or (check is None and target.device.type != "cpu") or torch.compiler.is_compiling():
        return
    try:
        _check_all(target, num_classes, ignore_index, given)
    except RuntimeError:  # torch.vmap shows no values
        if check:
            raise


def _check_all(target: Tensor, num_classes: int, ignore_index: int, given: dict[str, Tensor | None]) -> None:
    if target.is_floating_point():
        _check_finite("target", target)
    else:
        _check_classes(target, num_classes, ignore_index)
    for name, values in given.items():
        if values is not None:
            _check_finite(name, values)


def _check_classes(target: Tensor, num_classes: int, ignore_index: int) -> None:
    # The quick look first: one reduction.
    low, high = (int(bound) for bound in target.aminmax()) if target.numel() else (0, 0)
    if low >= 0 and high < num_classes:
        return
    bad = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    if bool(bad.any()):
        row = int(bad.reshape(-1).nonzero()[0])
        expected = f"a class from 0 to {num_classes - 1}, or ignore_index ({ignore_index})"
        raise InputError(expected, row=row, field="target", seen=int(target.reshape(-1)[row]))


def _check_finite(name: str, values: Tensor) -> None:
    # A sum is finite only if every term is.
    if math.isfinite(float(values.detach().sum())):
        return
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise InputError("a finite number", row=place[0], field=name, seen=float(values[place]))


def _check_device(name: str, values: Tensor, device: torch.device, as_what: str) -> None:
    if values.device != device:
        raise InputError(f"a tensor on {device}, as {as_what}", field=name, seen=str(values.device))


def _seen(values: Tensor) -> str:
    return f"{values.dtype} {list(values.shape)}"
