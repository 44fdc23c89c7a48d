"""The checks and shapes that the losses share: bad input becomes an `InputError` with the value seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from obverse.engine.errors import InputError

__all__ = ["check_logits", "check_values", "per_row"]


def check_logits(logits: Tensor, target: Tensor) -> None:
    """Raise `InputError` unless ``logits`` is float [*shape, V] and ``target`` int64 [*shape], one device."""
    if not logits.is_floating_point() or logits.ndim < 2 or logits.shape[-1] < 1:
        seen = f"{logits.dtype} {list(logits.shape)}"
        raise InputError("a float tensor [..., V] with at least two dimensions", field="logits", seen=seen)
    if target.dtype != torch.int64 or target.shape != logits.shape[:-1]:
        seen = f"{target.dtype} {list(target.shape)}"
        raise InputError(f"int64 class indices {list(logits.shape[:-1])}", field="target", seen=seen)
    if target.device != logits.device:
        raise InputError(f"a tensor on {logits.device}, as the logits", field="target", seen=str(target.device))


def per_row(name: str, values: Tensor | None, target: Tensor) -> Tensor | None:
    """``values`` given per row (the target's shape) or per sample (its first dimension) as one flat vector."""
    if values is None:
        return None
    whole = values.shape == target.shape
    if not values.is_floating_point() or not (whole or values.shape == target.shape[:1]):
        seen = f"{values.dtype} {list(values.shape)}"
        expected = f"a float tensor {list(target.shape)} or {list(target.shape[:1])}"
        raise InputError(expected, field=name, seen=seen)
    if values.device != target.device:
        raise InputError(f"a tensor on {target.device}, as the logits", field=name, seen=str(values.device))
    if whole:
        return values.reshape(-1)
    return values.reshape(-1, *[1] * (target.ndim - 1)).expand(target.shape).reshape(-1)


def check_values(
    target: Tensor, num_classes: int, ignore_index: int, given: dict[str, Tensor | None], *, check: bool | None
) -> None:
    """Raise `InputError` for a target outside the classes or a value that is not finite, naming the first row.

    ``check`` None looks at tensors on the CPU only: elsewhere a look at the values would stop the device.
    """
    if check is False or (check is None and target.device.type != "cpu"):
        return
    # The quick look first: one reduction each. A sum is finite only if every term is.
    low, high = (int(bound) for bound in target.aminmax()) if target.numel() else (0, 0)
    if low < 0 or high >= num_classes:
        bad = (target != ignore_index) & ((target < 0) | (target >= num_classes))
        if bool(bad.any()):
            row = int(bad.reshape(-1).nonzero()[0])
            expected = f"a class from 0 to {num_classes - 1}, or ignore_index ({ignore_index})"
            raise InputError(expected, row=row, field="target", seen=int(target.reshape(-1)[row]))
    for name, values in given.items():
        if values is None or math.isfinite(float(values.detach().sum())):
            continue
        wrong = (~values.isfinite()).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise InputError("a finite number", row=row, field=name, seen=float(values[row]))
