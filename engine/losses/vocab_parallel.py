"""Weighted cross-entropy of logits whose columns are spread over the ranks of a process group (tensor parallelism).

No rank ever holds another's logits. Per row the ranks exchange one maximum, then three sums in one message: of the
exponentials, of the target's logit and, for label smoothing, of the class-weighted logits. From these every rank
works out the same weights (IMP, DIMP, focal, sequence weights) and the gradient of its own columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from obverse.engine.errors import InputError
from obverse.engine.losses.functional import Diagnostics
from obverse.engine.losses.inputs import check_logits, check_values, per_row
from obverse.engine.losses.levels import denominator_for, sequence_rows
from obverse.engine.losses.settings import LossSettings, make_plan
from obverse.kernels.launch import Implementation, choose
from obverse.kernels.reference import RowLosses, reduce_rows
from obverse.kernels.weight_rule import RowInputs, Scheme, WeightRule, check_inputs, clip_log_weight, make_rule

__all__ = [
    "count_items",
    "vocab_parallel_weighted_cross_entropy",
    "vocab_parallel_weighted_cross_entropy_with_diagnostics",
]

# Logits worked on at a time: half a second-level cache of float32, and enough to fill a GPU.
_CPU_BLOCK = 1 << 17
_DEVICE_BLOCK = 1 << 24


def vocab_parallel_weighted_cross_entropy(
    local_logits: Tensor,
    target: Tensor,
    *,
    first_class: int,
    num_classes: int,
    group: Any = None,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_id: Tensor | None = None,
    num_items: Tensor | float | None = None,
    scheme: Scheme = "plain",
    **settings: Unpack[LossSettings],
) -> Tensor:
    """`weighted_cross_entropy` of logits [..., V] of which this rank has the columns from ``first_class`` on.

    All ranks of the group call it with the same targets, weights and settings, and get the same loss; the backward
    pass, with the same upstream gradient on each, gives each rank the gradient of its own columns and communicates
    nothing. Shards may have any widths; together they must be [0, ``num_classes``) once.

    Args:
        local_logits: [..., V_rank], V_rank at least 1; dtypes as `weighted_cross_entropy`. No copy of their size is
            made but the gradient.
        target: int64 [...], of all classes, or ``ignore_index``. There are no soft labels here.
        first_class: the class of this rank's first column.
        num_classes: V, of all ranks together.
        group: a `torch.distributed.ProcessGroup`; None: the default one, or no other rank where there is none.
        class_weight: [V], of all classes, on every rank.
        sample_weight, log_quality, log_diversity, sample_id, num_items, scheme, settings: as
            `weighted_cross_entropy` has them, but for ``inplace``. Weights get no gradient. The reference here is
            torch's own operations on blocks of rows.

    Returns:
        float32 (float64 for float64 logits), a scalar or, for reduction none, the target's shape.

    Raises:
        ValueError: as `weighted_cross_entropy`, on every rank alike. A target in no shard, or in two, makes its row
            NaN.
    """
    loss, _ = vocab_parallel_weighted_cross_entropy_with_diagnostics(
        local_logits,
        target,
        first_class=first_class,
        num_classes=num_classes,
        group=group,
        sample_weight=sample_weight,
        log_quality=log_quality,
        log_diversity=log_diversity,
        class_weight=class_weight,
        sample_id=sample_id,
        num_items=num_items,
        scheme=scheme,
        **settings,
    )
    return loss


def vocab_parallel_weighted_cross_entropy_with_diagnostics(
    local_logits: Tensor,
    target: Tensor,
    *,
    first_class: int,
    num_classes: int,
    group: Any = None,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_id: Tensor | None = None,
    num_items: Tensor | float | None = None,
    scheme: Scheme = "plain",
    **settings: Unpack[LossSettings],
) -> tuple[Tensor, Diagnostics]:
    """`vocab_parallel_weighted_cross_entropy` and, from the same pass, its `Diagnostics`."""
    plan = make_plan(scheme, **settings)
    kernel = choose(plan.kernel, local_logits, weight_gradients=False)
    shard = _Shard(first_class, num_classes, group, kernel)
    _check_shard(local_logits, target, shard, class_weight)
    given = {"sample_weight": sample_weight, "log_quality": log_quality, "log_diversity": log_diversity}
    check_inputs(scheme, {name for name, values in given.items() if values is not None})
    flat = {name: per_row(name, values, target, sample_id) for name, values in given.items()}
    flat["class_weight"] = class_weight
    check_values(target, num_classes, plan.rule.ignore_index, flat, check=plan.check)
    denominator = denominator_for(plan, num_items, local_logits.device)
    z, y = local_logits.reshape(-1, local_logits.shape[-1]), target.reshape(-1)
    if plan.level != "token" and scheme == "dimp":
        plain = plan.rule._replace(scheme="plain")
        rows = sequence_rows(
            _rows(z, y, plain, RowInputs(None, None, None, class_weight), shard), plan, flat, target, sample_id
        )
    else:
        rows = _rows(z, y, plan.rule, RowInputs(**flat), shard)
    if num_items is not None and denominator is not None:
        loss = rows.loss.sum() / denominator.to(rows.loss.dtype)
    else:
        loss = reduce_rows(
            rows.loss, rows.weight, rows.counted, normalisation=plan.normalisation, reduction=plan.reduction
        )
    if plan.reduction == "none":
        loss = loss.reshape(target.shape)
    kept = (rows.weight, rows.log_prob, rows.lse, rows.clipped, rows.counted)
    return loss, Diagnostics(*(values.reshape(target.shape) for values in kept))


def count_items(target: Tensor, *, group: Any = None, ignore_index: int = -100) -> Tensor:
    """The counted targets of all ranks of ``group``, at least 1: the ``num_items`` of rows spread over ranks.

    For sequence and data parallelism: each rank's loss is then its share, and the shares add up to the loss of all
    rows. Add up the ranks' gradients; where they are averaged (DistributedDataParallel), multiply the loss by the
    number of ranks. Weights of whole sequences (``level``) need each sequence on one rank.
    """
    count = (target != ignore_index).sum()
    _all_reduce(count, "SUM", group)
    return count.clamp_min(1)


class _Shard(NamedTuple):
    first: int
    num_classes: int
    group: Any
    kernel: Implementation


def _check_shard(logits: Tensor, target: Tensor, shard: _Shard, class_weight: Tensor | None) -> None:
    check_logits(logits, target)
    if target.is_floating_point():
        raise InputError("int64 classes (no soft labels over shards)", field="target", seen=str(target.dtype))
    last = shard.first + logits.shape[-1]
    alone = not (dist.is_available() and dist.is_initialized())
    if shard.first < 0 or last > shard.num_classes or (alone and logits.shape[-1] != shard.num_classes):
        expected = f"columns within [0, {shard.num_classes})" + ", all of them without torch.distributed" * alone
        raise InputError(expected, field="first_class", seen=f"columns [{shard.first}, {last})")
    if class_weight is not None and (
        class_weight.shape != (shard.num_classes,) or class_weight.device != logits.device
    ):
        seen = f"{list(class_weight.shape)} on {class_weight.device}"
        raise InputError(f"a tensor [{shard.num_classes}] on {logits.device}", field="class_weight", seen=seen)


def _all_reduce(values: Tensor, operation: str, group: Any) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, getattr(dist.ReduceOp, operation), group=group)


def _rows(logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, shard: _Shard) -> RowLosses:
    loss, weight, log_prob, lse, clipped = _VocabParallelRows.apply(logits, target, rule, inputs, shard)  # type: ignore[no-untyped-call]
    return RowLosses(loss, weight, log_prob, lse, clipped, target != rule.ignore_index)


class _VocabParallelRows(torch.autograd.Function):
    """Row losses [N] of a shard's logits [N, V_rank]. The letters are those of csrc/include/obverse/weighted_ce.hpp."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, shard: _Shard
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Loss, weight, log p, lse and clipped of each row; only the loss is differentiable."""
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        counted = target != rule.ignore_index
        y = torch.where(counted, target, 0)
        known_y = y.clamp(0, shard.num_classes - 1)  # for look-ups; a target beyond makes its row NaN below
        column = y - shard.first
        here = counted & (column >= 0) & (column < logits.shape[1])
        c = None if inputs.class_weight is None else inputs.class_weight.detach().to(dtype)
        mine = None if c is None else c[shard.first : shard.first + logits.shape[1]]
        place = _Place(torch.where(here, column, 0), here, counted)
        top, sums = _joined(logits, place, rule, mine, shard)
        others, z_y, spread, homes = sums.unbind()
        e_y = z_y.exp()
        total = others + e_y
        log_sum = total.log()
        lse = top + log_sum
        nll = torch.where(others <= 0.5 * e_y, (others / e_y).log1p(), log_sum - z_y)
        miss, p_y = others / total, e_y / total
        e = rule.label_smoothing
        c_y = torch.where(homes == 1, torch.ones_like(nll) if c is None else c[known_y], torch.nan)
        total_c: Tensor | float = shard.num_classes if c is None else c.sum()
        mass = (1 - e) * c_y + e * total_c / shard.num_classes  # T
        base = (1 - e) * c_y * nll
        if e > 0:
            base = base - (e / shard.num_classes) * (spread - total_c * log_sum)
        if rule.z_loss > 0:
            base = base + rule.z_loss * lse.square()
        w, clipped = _weights(nll, miss, rule, inputs)
        focal = torch.zeros_like(w)
        if rule.scheme == "focal" and not rule.focal_detached:
            focal = torch.where(miss > 0, rule.gamma * w * p_y * (base / miss), 0.0)
        push = 2 * rule.z_loss * lse * w if rule.z_loss > 0 else torch.zeros_like(w)
        pull = w * mass + focal
        t = w * e * (total_c - c_y) / shard.num_classes + push * p_y - pull * miss
        figures = torch.stack([top, log_sum, pull + push, t, w])
        ctx.save_for_backward(logits, *place, figures, mine)
        ctx.uniform, ctx.kernel = e / shard.num_classes, shard.kernel
        out = (w * base, w * c_y, torch.where(homes == 1, -nll, torch.nan), lse)
        loss, weight, log_prob, lse = (torch.where(counted, values, 0.0) for values in out)
        clipped = clipped * counted
        ctx.mark_non_differentiable(weight, log_prob, lse, clipped)
        return loss, weight, log_prob, lse, clipped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of this rank's columns."""
        logits, *places, figures, mine = ctx.saved_tensors
        place, to_gradient = _Place(*places), _gradient if ctx.kernel == "reference" else _gradient_by_kernel
        g = upstream.to(figures.dtype)
        return to_gradient(logits, place, figures, g, mine, ctx.uniform, ctx.kernel), None, None, None, None


class _Place(NamedTuple):
    """Where each row's target is, [N] each."""

    column: Tensor
    """Its column among this rank's; 0 where it has none."""
    here: Tensor
    """It is among this rank's."""
    counted: Tensor
    """It is not ignored."""

    def as_target(self, elsewhere: int) -> Tensor:
        """The target of a kernel that knows of this rank's columns only; -100 is left out."""
        return torch.where(self.counted, torch.where(self.here, self.column, elsewhere), -100)


def _gradient(
    logits: Tensor, place: _Place, figures: Tensor, g: Tensor, mine: Tensor | None, uniform: float, _: str
) -> Tensor:
    top, log_sum, a, t, w = figures.unbind()
    slope, at_target, share = a * g, t * g, w * g * uniform
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for part in _parts(logits):
        # The top goes off first: large logits would leave no room for log_sum's digits.
        block = (logits[part].to(a.dtype) - top[part, None]).sub_(log_sum[part, None]).exp_()
        block.mul_(slope[part, None])
        block.sub_(share[part, None] if mine is None else share[part, None] * mine)
        _put(block, place.column[part], place.here[part], at_target[part])
        gradient[part] = block.masked_fill_(~place.counted[part, None], 0.0)
    return gradient


def _gradient_by_kernel(
    logits: Tensor, place: _Place, figures: Tensor, g: Tensor, mine: Tensor | None, uniform: float, kernel: str
) -> Tensor:
    from obverse.kernels import ops

    # The kernel makes its e / V of its own columns' number.
    rule = make_rule("plain", label_smoothing=uniform * logits.shape[1])
    fields = torch.cat([torch.zeros_like(figures[:4]), figures])
    target = place.as_target(elsewhere=-1)
    made: Tensor = ops.ce_backward(_dense(logits), target, None, None, None, mine, *rule, kernel, fields, g)
    return made


def _joined(
    logits: Tensor, place: _Place, rule: WeightRule, mine: Tensor | None, shard: _Shard
) -> tuple[Tensor, Tensor]:
    """The rows' maxima [N] and sums [4, N] over all ranks, all relative to the maximum (0 where it is -inf).

    The sums are of exp z_j but for the target, of the target's z, of c_j z_j (with smoothing), and of the ranks that
    have the target.
    """
    figures = None
    if shard.kernel == "reference":
        top = logits.detach().amax(dim=1).to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    else:
        from obverse.kernels import ops

        target = place.as_target(elsewhere=0)
        weights = (None, None, None, None)
        _, figures, _ = ops.ce_forward(_dense(logits.detach()), target, *weights, *make_rule("plain"), shard.kernel)
        top = figures[4]
    own_top = top.clone()
    _all_reduce(top, "MAX", shard.group)
    base = torch.where(top == -torch.inf, 0.0, top)
    z_y = logits.detach().gather(1, place.column[:, None]).squeeze(1).to(base.dtype) - base
    sums = torch.zeros((4, len(logits)), dtype=base.dtype, device=logits.device)
    sums[1], sums[3] = torch.where(place.here, z_y, 0.0), place.here
    wanted = (figures is None, rule.label_smoothing > 0)
    if any(wanted):
        _sum_blocks(logits.detach(), place, base, mine, wanted, sums)
    if figures is not None:
        total = torch.where(own_top == -torch.inf, 0.0, (figures[5] + (own_top - base)).exp())
        e_y, nll = z_y.exp(), -figures[2]
        # Where the target has most of the sum, the sum less the target would have no digits left.
        others = torch.where(nll < 1, e_y * nll.expm1(), total - e_y)
        sums[0] = torch.where(place.here, others, total)
    _all_reduce(sums, "SUM", shard.group)
    return base, sums


def _sum_blocks(
    logits: Tensor, place: _Place, base: Tensor, mine: Tensor | None, wanted: tuple[bool, bool], sums: Tensor
) -> None:
    """Of `_joined`'s sums that of the exponentials and that of c_j z_j, as ``wanted``."""
    exponentials, spread = wanted
    for part in _parts(logits):
        block = logits[part].to(base.dtype) - base[part, None]
        if spread:
            # A class of no weight hides even -inf.
            sums[2, part] = (block if mine is None else torch.where(mine == 0, 0.0, mine * block)).sum(dim=1)
        if exponentials:
            _put(block.exp_(), place.column[part], place.here[part], torch.zeros_like(base[part]))
            sums[0, part] = block.sum(dim=1)


def _weights(nll: Tensor, miss: Tensor, rule: WeightRule, inputs: RowInputs) -> tuple[Tensor, Tensor]:
    """w [N] and int8 [N] clipped, as `kernels.weight_rule` says."""
    w, clipped = torch.ones_like(nll), torch.zeros_like(nll, dtype=torch.int8)
    if rule.scheme in ("imp", "dimp"):
        assert inputs.log_quality is not None
        below = -nll if inputs.log_diversity is None else inputs.log_diversity.detach().to(nll.dtype)
        w, clipped = clip_log_weight(inputs.log_quality.detach().to(nll.dtype) - below, rule)
    elif rule.scheme == "focal":
        w = miss.clamp_min(torch.finfo(miss.dtype).tiny).pow(rule.gamma)
    if inputs.sample_weight is not None:
        w = w * inputs.sample_weight.detach().to(nll.dtype)
    return w, clipped


def _put(block: Tensor, column: Tensor, here: Tensor, values: Tensor) -> None:
    """Set ``column`` of each row of ``block`` to ``values`` in the rows where the target is ``here``."""
    column = column[:, None]
    block.scatter_(1, column, torch.where(here[:, None], values[:, None], block.gather(1, column)))


def _parts(logits: Tensor) -> list[slice]:
    step = max(1, (_CPU_BLOCK if logits.device.type == "cpu" else _DEVICE_BLOCK) // logits.shape[1])
    return [slice(first, first + step) for first in range(0, len(logits), step)]


def _dense(logits: Tensor) -> Tensor:
    """Columns side by side, as the kernels take them."""
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()
