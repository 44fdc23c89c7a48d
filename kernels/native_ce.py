"""The weighted cross-entropy by the C++ core: CPU tensors of float32, bfloat16 or float16.

Each function here has its twin in `weighted_ce` (Triton); csrc/include/obverse/weighted_ce.hpp has the equations.
Addresses go to the core as numbers: the checks of shape, dtype and device stand in `cross_entropy`, before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from obverse import _core
from obverse.kernels.weight_rule import NUM_FIELDS, RowInputs, WeightRule

# Typed by its stub, which a tuple unpacked in the middle of a call can't be held against.
_native: Any = _core

__all__ = ["ISAS", "backward_rows", "forward_rows", "fused_mean", "fused_rows", "isa_of", "scale_"]

# By the core's number. A kernel's name may only lower what the processor offers.
ISAS = ("portable", "avx2", "avx512", "avx512bf16")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def isa_of(kernel: str) -> int:
    """The core's number of the instruction set that ``kernel`` ("cpp", "cpp-avx2", ...) may use at most."""
    return ISAS.index(kernel.removeprefix("cpp-")) if "-" in kernel else len(ISAS) - 1


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _problem(logits: Tensor, target: Tensor, inputs: RowInputs) -> tuple[int, ...]:
    soft = target.is_floating_point()
    return (
        logits.data_ptr(),
        DTYPES[logits.dtype],
        *logits.shape,
        logits.stride(0),
        0 if soft else target.data_ptr(),
        *(_address(values) for values in inputs),
        target.data_ptr() if soft else 0,
        DTYPES[target.dtype] if soft else 0,
        target.stride(0) if soft else 0,
    )


def _rule(rule: WeightRule) -> tuple[int | float, ...]:
    return (
        rule.code,
        rule.focal_detached,
        rule.gamma,
        rule.log_low,
        rule.log_high,
        rule.label_smoothing,
        rule.z_loss,
        rule.ignore_index,
    )


def _outputs(num_rows: int) -> tuple[Tensor, Tensor]:
    return torch.empty((NUM_FIELDS, num_rows)), torch.empty(num_rows, dtype=torch.int8)


def forward_rows(
    logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, *, isa: int = 3
) -> tuple[Tensor, Tensor]:
    """Each row's figures, float32 [NUM_FIELDS, N] (see `weight_rule.NUM_FIELDS`), and int8 [N], what was clipped."""
    fields, clipped = _outputs(logits.shape[0])
    _native.ce_forward(
        *_problem(logits, target, inputs),
        _rule(rule),
        fields.data_ptr(),
        clipped.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return fields, clipped


def backward_rows(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    fields: Tensor,
    upstream: Tensor,
    out: Tensor | None = None,
    *,
    isa: int = 3,
) -> Tensor:
    """d loss / d logits [N, V] in the logits' dtype, given ``upstream`` [N] (any stride); ``out`` may be the logits."""
    if out is None:
        out = torch.empty(logits.shape, dtype=logits.dtype)
    upstream = upstream.float()
    _native.ce_backward(
        *_problem(logits, target, inputs),
        _rule(rule),
        fields.data_ptr(),
        upstream.data_ptr(),
        upstream.stride(0),
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
        isa,
    )
    return out


def fused_rows(
    logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, upstream: Tensor, out: Tensor, *, isa: int = 3
) -> tuple[Tensor, Tensor]:
    """`forward_rows`, and the gradient times ``upstream`` [N] into ``out`` [N, V], which may be the logits."""
    fields, clipped = _outputs(logits.shape[0])
    _native.ce_fused(
        *_problem(logits, target, inputs),
        _rule(rule),
        upstream.data_ptr(),
        upstream.stride(0),
        fields.data_ptr(),
        clipped.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
        isa,
    )
    return fields, clipped


def fused_mean(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    denominator: Tensor | None,
    out: Tensor,
    *,
    isa: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the losses over ``denominator`` (None: the number of rows that count), fields, clipped.

    ``out`` [N, V] receives the gradient of that total, and may be the logits.
    """
    if denominator is not None:
        below = float(denominator)
    elif target.is_floating_point():
        below = len(target)
    else:
        below = _core.ce_count(target.data_ptr(), len(target), rule.ignore_index)
    scale = 1.0 / below if below != 0 else 0.0
    upstream = torch.tensor([scale]).expand(logits.shape[0])
    fields, clipped = fused_rows(logits, target, rule, inputs, upstream, out, isa=isa)
    # Summed wider: a batch of 64k rows would lose three digits of the mean.
    total = torch.tensor(scale * _core.ce_sum(fields.data_ptr(), logits.shape[0]), dtype=torch.float32)
    return total, fields, clipped


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """``gradient *= factor`` (one element), unless it is 1."""
    if float(factor) != 1.0:
        gradient.mul_(factor.reshape(()).to(torch.float32))


def linear_is_fast(dtype: torch.dtype, isa: int) -> bool:
    """Whether the core's products beat the library's for this dtype on this processor."""
    return dtype in (torch.float32, torch.bfloat16) and bool(_core.linear_ce_is_fast(DTYPES[dtype], isa))


def linear_rows(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    upstream: Tensor,
    fields: Tensor,
    clipped: Tensor,
    gradients: list[int],
    *,
    isa: int = 3,
) -> None:
    """`linear_ce.linear_rows` by the core, into ``fields``, ``clipped`` and the addresses ``gradients`` (0: none)."""
    _native.linear_ce(
        hidden.data_ptr(),
        DTYPES[hidden.dtype],
        *hidden.shape,
        hidden.stride(0),
        head.data_ptr(),
        head.shape[0],
        head.stride(0),
        _address(bias),
        target.data_ptr(),
        *(_address(values) for values in inputs),
        _rule(rule),
        upstream.data_ptr(),
        upstream.stride(0),
        fields.data_ptr(),
        clipped.data_ptr(),
        *gradients,
        torch.get_num_threads(),
        isa,
    )
