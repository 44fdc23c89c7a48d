# mypy: disallow-untyped-calls=False
# (Triton's kernels are untyped.)
"""The weighted cross-entropy in Triton: forward, backward, both at once, and a small problem's mean in one launch.

Importing this module imports Triton. All tensors are on one device, and none of these functions waits for it.

``logits`` [N, V] float32, bfloat16 or float16, unit column stride, any row stride. ``target``: int64 [N], or soft,
[N, V] in one of the three dtypes, unit column stride (not with focal). A hard target outside [0, V) that is not
``ignore_index`` can't be reported without stopping the device: it makes its row NaN. The `RowInputs` are float32
and contiguous.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from obverse.kernels import weighted_ce_kernels as kernels
from obverse.kernels.launch import BlockSizes, one_program_blocks, row_blocks, tile_blocks
from obverse.kernels.weight_rule import NUM_FIELDS, RowInputs, WeightRule

__all__ = ["backward_rows", "forward_rows", "fused_mean", "fused_rows", "scale_"]

# Targets or losses that a lone program takes at a time.
_COUNT, _COUNT_WARPS = 4096, 16
# 132 SMs hold eight programs of eight warps each. More would be started and ended in vain where the factor is 1.
_SCALE_PROGRAMS = 1056


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


def _new_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the fields, float32 [9, N], and int8 [N] clipped."""
    num_rows = logits.shape[0]
    fields = torch.empty((NUM_FIELDS, num_rows), dtype=torch.float32, device=logits.device)
    return fields, torch.empty(num_rows, dtype=torch.int8, device=logits.device)


def _row_blocks(logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs) -> BlockSizes:
    many = target.is_floating_point() or (inputs.class_weight is not None and rule.label_smoothing > 0)
    return row_blocks(logits.shape[1], logits.element_size(), many_sums=many)


def _rule_arguments(
    logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, blocks: BlockSizes
) -> dict[str, Any]:
    """What every kernel that reads whole rows is given."""
    return {
        "logits": logits,
        "target": target,
        **inputs._asdict(),
        "row_stride": logits.stride(0),
        "target_stride": target.stride(0),
        "num_rows": logits.shape[0],
        "num_columns": logits.shape[1],
        "ignore_index": rule.ignore_index,
        "gamma": rule.gamma,
        "log_low": rule.log_low,
        "log_high": rule.log_high,
        "smoothing": rule.label_smoothing,
        "z_loss": rule.z_loss,
        "SOFT": target.is_floating_point(),
        "SCHEME": rule.code,
        "FOCAL_DETACHED": rule.focal_detached,
        "HAS_SAMPLE_WEIGHT": inputs.sample_weight is not None,
        "HAS_CLASS_WEIGHT": inputs.class_weight is not None,
        "SMOOTH": rule.label_smoothing > 0,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "num_warps": blocks.num_warps,
    }


def forward_rows(logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs) -> tuple[Tensor, Tensor]:
    """The rows' fields, float32 [9, N] (see `NUM_FIELDS`), and int8 [N] clipped. Reads each logit once."""
    fields, clipped = _new_rows(logits)
    if logits.shape[0] == 0:
        return fields, clipped
    blocks = _row_blocks(logits, target, rule, inputs)
    with _on(logits):
        kernels.forward_kernel[blocks.grid(logits.shape[0])](
            **_rule_arguments(logits, target, rule, inputs, blocks),
            fields=fields,
            clipped_out=clipped,
            WIDE=blocks.wide,
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
) -> Tensor:
    """d loss / d logits [N, V] in the logits' dtype from the ``fields`` that a forward pass left.

    ``upstream``: [N], any stride, zero too. ``out`` may be the logits, and is what is returned.
    """
    num_rows, num_columns = logits.shape
    if out is None:
        out = torch.empty((num_rows, num_columns), dtype=logits.dtype, device=logits.device)
    if num_rows == 0:
        return out
    blocks = tile_blocks(num_columns)
    with _on(logits):
        kernels.backward_kernel[(-(-num_rows // blocks.rows), -(-num_columns // blocks.columns))](
            logits,
            target,
            inputs.class_weight,
            fields,
            upstream,
            out,
            logits.stride(0),
            target.stride(0),
            upstream.stride(0),
            out.stride(0),
            num_rows,
            num_columns,
            rule.ignore_index,
            rule.label_smoothing,
            SOFT=target.is_floating_point(),
            HAS_CLASS_WEIGHT=inputs.class_weight is not None,
            SMOOTH=rule.label_smoothing > 0,
            ROWS=blocks.rows,
            COLUMNS=blocks.columns,
            num_warps=blocks.num_warps,
        )
    return out


def fused_rows(
    logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, upstream: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """`forward_rows`, and into ``out`` [N, V] the gradient times ``upstream`` [N], in one launch.

    ``out`` may be the logits. Main memory is read once and written once where the second-level cache holds the
    rows in work.
    """
    return _fused(logits, target, rule, inputs, upstream, upstream.stride(0), out, divide=False)


def _fused(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    upstream: Tensor,
    upstream_stride: int,
    out: Tensor,
    *,
    divide: bool,
) -> tuple[Tensor, Tensor]:
    fields, clipped = _new_rows(logits)
    if logits.shape[0] == 0:
        return fields, clipped
    blocks = _row_blocks(logits, target, rule, inputs)
    with _on(logits):
        kernels.fused_kernel[blocks.grid(logits.shape[0])](
            **_rule_arguments(logits, target, rule, inputs, blocks),
            upstream=upstream,
            gradient=out,
            fields=fields,
            clipped_out=clipped,
            upstream_stride=upstream_stride,
            gradient_stride=out.stride(0),
            DIVIDE=divide,
            WIDE=blocks.wide,
        )
    return fields, clipped


def fused_mean(
    logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, denominator: Tensor | None, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the rows' losses over ``denominator``, float32 [], and the rows' fields and clipped.

    ``denominator``: float32, one element on the device; None counts the rows that are not ignored (at least 1).
    ``out`` [N, V], which may be the logits, gets the gradient of that mean. A denominator of 0 gives 0 and zero
    gradients. Small problems take one launch, others two or three.
    """
    num_rows, num_columns = logits.shape
    if num_rows == 0:
        fields, clipped = _new_rows(logits)
        return torch.zeros((), dtype=torch.float32, device=logits.device), fields, clipped
    total = torch.empty((), dtype=torch.float32, device=logits.device)
    blocks = one_program_blocks(num_rows, num_columns)
    if blocks is not None:
        fields, clipped = _new_rows(logits)
        with _on(logits):
            kernels.mean_kernel[(1,)](
                **_rule_arguments(logits, target, rule, inputs, blocks),
                denominator=denominator,
                gradient=out,
                fields=fields,
                clipped_out=clipped,
                total_out=total,
                gradient_stride=out.stride(0),
                HAS_DENOMINATOR=denominator is not None,
                COUNT=_COUNT,
            )
        return total, fields, clipped
    if denominator is None:
        denominator = torch.empty((), dtype=torch.float32, device=logits.device)
        with _on(logits):
            kernels.count_kernel[(1,)](
                target,
                denominator,
                num_rows,
                rule.ignore_index,
                SOFT=target.is_floating_point(),
                COUNT=_COUNT,
                num_warps=_COUNT_WARPS,
            )
    fields, clipped = _fused(logits, target, rule, inputs, denominator, 0, out, divide=True)
    with _on(logits):
        kernels.total_kernel[(1,)](fields, denominator, total, num_rows, COUNT=_COUNT, num_warps=_COUNT_WARPS)
    return total, fields, clipped


def scale_(gradient: Tensor, factor: Tensor) -> Tensor:
    """``gradient *= factor`` in place; ``factor``: float32, one element on the device.

    One launch, which touches nothing where the factor is 1. The columns are contiguous, rows may have any stride.
    """
    if gradient.numel() == 0:
        return gradient
    flat = gradient.view(1, -1) if gradient.is_contiguous() else gradient
    num_rows, num_columns = flat.shape
    blocks = tile_blocks(num_columns)
    programs = min(_SCALE_PROGRAMS, num_rows * -(-num_columns // blocks.columns))
    with _on(gradient):
        kernels.scale_kernel[(programs,)](
            flat, factor, flat.stride(0), num_rows, num_columns, COLUMNS=blocks.columns, num_warps=blocks.num_warps
        )
    return gradient
