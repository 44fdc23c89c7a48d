"""The weighted cross-entropy in plain torch, a block of rows at a time: any device, any float dtype.

A composition of torch ops over the whole [N, V] makes several tensors of that size and goes through main memory
for each; a block stays in cache, and one scratch buffer serves them all. Same arithmetic, same saved numbers
per row as `weighted_ce` (which see); float64 logits are worked in float64, all others in float32.

On the CPU a block is small enough that torch works each op on one thread, and spans of rows are shared out to
as many threads as torch has. Left to itself torch would divide every op of every block among its threads and
wait for all of them each time: on a busy machine that was ten times slower than no threads at all. It also
makes the results independent of the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from obverse.kernels.weight_rule import WeightRule, clip_log_weight

__all__ = ["backward_rows", "forward_rows"]

# Below this many elements torch works an op on the calling thread (at::internal::GRAIN_SIZE).
_SERIAL = 32768
# Work for one thread to be worth its start, about 0.1 ms.
_PER_THREAD = 1 << 18
_CACHED = 1 << 18
_DEVICE_BLOCK = 1 << 24


def _spans(logits: Tensor, work: Callable[[int, int], None]) -> None:
    """Call ``work(first, last)`` over all rows, on the CPU from as many threads as torch has and the work pays."""
    num_rows = logits.shape[0]
    threads = min(torch.get_num_threads(), num_rows, logits.numel() // _PER_THREAD)
    if logits.device.type != "cpu" or threads <= 1:
        work(0, num_rows)
        return
    inference = torch.is_inference_mode_enabled()

    def from_thread(first: int, last: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are per thread
            work(first, last)

    bounds = [num_rows * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(from_thread, *bounds[i : i + 2]) for i in range(1, threads)]
        work(*bounds[:2])
        for other in others:
            other.result()


def _block_shape(logits: Tensor) -> tuple[int, int]:
    """Rows and columns of one block; fewer columns than all only for a single row."""
    num_columns = logits.shape[1]
    if logits.device.type != "cpu":
        return max(1, _DEVICE_BLOCK // num_columns), num_columns
    # With one thread torch divides nothing, and a block may fill half the second-level cache. The width must
    # not depend on that: it decides in what order a row is summed.
    elements = _CACHED if torch.get_num_threads() == 1 and num_columns < _SERIAL else _SERIAL - 1
    return max(1, elements // num_columns), min(num_columns, _SERIAL - 1)


def _subtract(left: Tensor, right: Tensor, out: Tensor) -> None:
    # torch's mixed-dtype subtraction is scalar code on the CPU: converting first is twice as fast.
    if left.dtype == out.dtype:
        torch.sub(left, right, out=out)
    else:
        out.copy_(left).sub_(right)


def _put(block: Tensor, y: Tensor, left: int, num_columns: int, values: Tensor | float) -> None:
    """Set the target's column of ``block`` (columns from ``left`` on) where it lies in there."""
    if block.shape[1] == num_columns:
        block.scatter_(1, y, values)
        return
    place = int(y) - left  # one row, on the CPU
    if 0 <= place < block.shape[1]:
        block[0, place] = values


def forward_rows(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    sample_weight: Tensor | None,
    log_quality: Tensor | None,
    log_diversity: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Per-row results [8, N] (loss, weight, log p, lse, row maximum, log of sum, a, t) and int8 [N] clipped."""
    num_rows, num_columns = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    counted = target != rule.ignore_index
    y = torch.where(counted, target, 0)[:, None]
    z_y = logits.gather(1, y).squeeze(1).to(dtype)
    top = torch.empty(num_rows, dtype=dtype, device=logits.device)
    others, spread = torch.zeros_like(top), torch.zeros_like(top)
    step, width = _block_shape(logits)

    def work(begin: int, end: int) -> None:
        scratch = torch.empty(step * width, dtype=dtype, device=logits.device)
        for first in range(begin, end, step):
            part = slice(first, min(first + step, end))
            pieces = torch.split(logits[part], width, dim=1)
            top[part] = torch.stack([piece.amax(dim=1) for piece in pieces]).amax(dim=0)
            for place, piece in enumerate(pieces):
                block = scratch[: piece.numel()].view(piece.shape)
                _subtract(piece, top[part, None], block)
                if rule.label_smoothing > 0:
                    spread[part] += block.sum(dim=1)
                _put(block.exp_(), y[part], place * width, num_columns, 0.0)
                others[part] += block.sum(dim=1)

    _spans(logits, work)
    spread += num_columns * (top - z_y)  # now the sum of z_j - z_y
    return _row_results(rule, counted, num_columns, top, others, z_y, spread, sample_weight, log_quality, log_diversity)


def _row_results(
    rule: WeightRule,
    counted: Tensor,
    num_columns: int,
    top: Tensor,
    others: Tensor,
    z_y: Tensor,
    spread: Tensor,
    sample_weight: Tensor | None,
    log_quality: Tensor | None,
    log_diversity: Tensor | None,
) -> tuple[Tensor, Tensor]:
    e_y = (z_y - top).exp()
    total = others + e_y
    log_sum = total.log()
    nll = torch.where(others <= 0.5 * e_y, (others / e_y).log1p(), (top - z_y) + log_sum)
    miss = others / total
    base = nll
    if rule.label_smoothing > 0:
        base = torch.where(z_y == -torch.inf, torch.inf, nll - rule.label_smoothing * spread / num_columns)
    weight = torch.ones_like(nll) if sample_weight is None else sample_weight.to(nll.dtype)
    clipped = torch.zeros_like(nll, dtype=torch.int8)
    focal = torch.zeros_like(nll)
    if rule.scheme in ("imp", "dimp"):
        assert log_quality is not None
        below = -nll if log_diversity is None else log_diversity
        ratio, clipped = clip_log_weight(log_quality - below, rule)
        weight = weight * ratio
    elif rule.scheme == "focal":
        weight = weight * miss.pow(rule.gamma)
        if not rule.focal_detached:
            focal = torch.where(miss > 0, rule.gamma * weight * (1 - miss) * (base / miss), 0.0)
    a = weight + focal
    t = weight * rule.label_smoothing * (1 - 1 / num_columns) - a * miss
    out = torch.stack([weight * base, weight, -nll, top + log_sum, top, log_sum, a, t])
    out[:4].masked_fill_(~counted, 0.0)
    return out, clipped * counted


def backward_rows(logits: Tensor, target: Tensor, rule: WeightRule, rows: Tensor, upstream: Tensor) -> Tensor:
    """d loss / d logits [N, V] in the logits' dtype, given ``upstream`` [N]."""
    num_rows, num_columns = logits.shape
    counted = target != rule.ignore_index
    y = torch.where(counted, target, 0)[:, None]
    _, weight, _, _, top, log_sum, a, t = rows.unbind(0)
    g = torch.where(counted, upstream.to(rows.dtype), 0.0)
    slope, at_target, uniform = a * g, t * g, weight * g * (rule.label_smoothing / num_columns)
    gradient = torch.empty((num_rows, num_columns), dtype=logits.dtype, device=logits.device)
    step, width = _block_shape(logits)
    direct = logits.dtype == rows.dtype

    def work(begin: int, end: int) -> None:
        scratch = rows.new_empty(0 if direct else step * width)
        for first in range(begin, end, step):
            part = slice(first, min(first + step, end))
            pairs = zip(*(torch.split(whole[part], width, dim=1) for whole in (logits, gradient)), strict=True)
            for place, (piece, out) in enumerate(pairs):
                block = out if direct else scratch[: piece.numel()].view(piece.shape)
                # top and log_sum go off in turn: large logits would leave no room for log_sum's digits.
                _subtract(piece, top[part, None], block)
                block.sub_(log_sum[part, None]).exp_().mul_(slope[part, None])
                if rule.label_smoothing > 0:
                    block.sub_(uniform[part, None])
                _put(block, y[part], place * width, num_columns, at_target[part, None])
                if not direct:
                    out.copy_(block)

    _spans(logits, work)
    # A row left out may hold inf or NaN, and 0 times those is NaN. Finding the rows would stop a device.
    if logits.device.type != "cpu":
        return gradient.masked_fill_(~counted[:, None], 0.0)
    return gradient.index_fill_(0, (~counted).nonzero().squeeze(1), 0.0)
