"""Linear layer and weighted cross-entropy together, a chunk of rows at a time: never all logits at once.

The weights of a row are known once its logits are, so a chunk's gradient is made in place where its logits were, and
three matrix products do (logits, d hidden, d head_weight); weighting the losses of an operator without weights takes
a fourth. On a CPU whose vector units beat the library's products the C++ core does all of it
(csrc/include/obverse/linear_ce.hpp); elsewhere the products are the library's and the rows are the kernels'.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from obverse.kernels.ops import implementation
from obverse.kernels.weight_rule import NUM_FIELDS, RowInputs, WeightRule

__all__ = ["LinearGradients", "LinearJob", "Wanted", "linear_rows", "rows_a_chunk"]

# Bytes of one chunk's logits. On a CPU what the third-level cache and a quarter of small problems' logits allow; on
# a device large enough for its products to run at full speed.
_CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 30}
_LEAST_ROWS = {"cpu": 64, "cuda": 1024}


class Wanted(NamedTuple):
    """Which gradients to make."""

    hidden: bool
    head: bool
    bias: bool


class LinearGradients(NamedTuple):
    """d hidden [N, D], d head_weight [V, D], d bias [V], in the inputs' dtype; an empty tensor where not wanted."""

    hidden: Tensor
    head: Tensor
    bias: Tensor


def rows_a_chunk(num_columns: int, logits: torch.dtype, device: str) -> int:
    """Rows whose logits are held at once."""
    size = num_columns * logits.itemsize
    rows = max(_LEAST_ROWS.get(device, 1024), _CHUNK_BYTES.get(device, 1 << 30) // size)
    return rows // 64 * 64


class LinearJob(NamedTuple):
    """A linear layer with its targets: what the operators hand on, see `linear_rows`."""

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    target: Tensor
    rule: WeightRule
    inputs: RowInputs
    upstream: Tensor
    wanted: Wanted
    kernel: str


class _Output(NamedTuple):
    fields: Tensor
    clipped: Tensor
    made: LinearGradients


def linear_rows(job: LinearJob) -> tuple[Tensor, Tensor, LinearGradients]:
    """Each row's figures [NUM_FIELDS, N], int8 [N] what was clipped, and the gradients times ``upstream`` [N].

    ``hidden`` [N, D] and ``head`` [V, D] in one dtype with unit column strides; ``target`` int64 [N].
    """
    hidden, head = job.hidden, job.head
    num_rows = hidden.shape[0]
    shapes = (hidden.shape, head.shape, head.shape[:1])
    out = _Output(
        hidden.new_empty((NUM_FIELDS, num_rows), dtype=torch.float32),
        hidden.new_empty(num_rows, dtype=torch.int8),
        LinearGradients(*(hidden.new_empty(s if w else 0) for s, w in zip(shapes, job.wanted, strict=True))),
    )
    if not (job.kernel.startswith("cpp") and _native(job, out)):
        _in_chunks(job, out)
    return out


def _native(job: LinearJob, out: _Output) -> bool:
    """All of it by the core; False where its products are not the faster ones."""
    from obverse.kernels import native_ce

    isa = native_ce.isa_of(job.kernel)
    if not native_ce.linear_is_fast(job.hidden.dtype, isa):
        return False
    addresses = [g.data_ptr() if w else 0 for g, w in zip(out.made, job.wanted, strict=True)]
    native_ce.linear_rows(*job[:7], out.fields, out.clipped, addresses, isa=isa)
    return True


def _in_chunks(job: LinearJob, out: _Output) -> None:
    """Products by the library, rows by the kernels."""
    module, options = implementation(job.kernel)
    hidden, head, wanted, made = job.hidden, job.head, job.wanted, out.made
    num_rows = hidden.shape[0]
    step = rows_a_chunk(head.shape[0], hidden.dtype, hidden.device.type)
    head_sum, bias_sum = _accumulators(head, made, wanted, -(-num_rows // step))
    # 0 times a NaN in an ignored row would reach every column of d head_weight.
    counted = (job.target != job.rule.ignore_index)[:, None]
    for first in range(0, num_rows, step):
        part = slice(first, min(first + step, num_rows))
        named = job.inputs._asdict().items()
        rows = RowInputs(*(v if v is None or k == "class_weight" else v[part] for k, v in named))
        leading, target = hidden[part], job.target[part]
        logits = torch.mm(leading, head.t()) if job.bias is None else torch.addmm(job.bias, leading, head.t())
        if not any(wanted):
            found = module.forward_rows(logits, target, job.rule, rows, **options)
        else:
            found = module.fused_rows(logits, target, job.rule, rows, job.upstream[part], logits, **options)
        out.fields[:, part], out.clipped[part] = found
        if wanted.hidden:
            torch.mm(logits, head, out=made.hidden[part])
        if wanted.head:
            _add_product(head_sum, logits, torch.where(counted[part], leading, 0.0))
        if wanted.bias:
            bias_sum += logits.sum(dim=0, dtype=torch.float32)
    if wanted.head and head_sum is not made.head:
        made.head.copy_(head_sum)
    if wanted.bias:
        made.bias.copy_(bias_sum)


def _accumulators(head: Tensor, made: LinearGradients, wanted: Wanted, chunks: int) -> tuple[Tensor, Tensor]:
    """Where d head_weight and d bias are summed: wider than 16 bits, unless there is hardly anything to sum."""
    bias_sum = head.new_zeros(head.shape[0] if wanted.bias else 0, dtype=torch.float32)
    if not wanted.head:
        return made.head, bias_sum
    if head.dtype == torch.float32 or chunks <= 2:
        return made.head.zero_(), bias_sum
    return torch.zeros_like(head, dtype=torch.float32), bias_sum


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """``total += gradient^T hidden``; a product in another dtype is made a slice of classes at a time.

    The library hands a 16-bit product over rounded, so that each chunk adds a rounding that one product over all
    rows would not have: the error's variance doubles at most.
    """
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden)
        return
    width = max(1, (1 << 24) // max(1, hidden.shape[1]))
    for first in range(0, total.shape[0], width):
        part = slice(first, first + width)
        total[part] += torch.mm(gradient[:, part].t(), hidden)
