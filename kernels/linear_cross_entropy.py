"""The differentiable linear layer with weighted cross-entropy: checks, operators of torch, gradients.

``torch.ops.obverse.linear_ce_total`` makes loss and gradients in one pass of three matrix products;
``linear_ce_rows`` the loss of each row alone, whose backward pass (``linear_ce_gradients``) makes the logits again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from obverse.kernels import launch, reference
from obverse.kernels.linear_ce import LinearJob, Wanted, linear_rows
from obverse.kernels.ops import ce_scale_, divided, fake_fields
from obverse.kernels.reference import RowLosses
from obverse.kernels.register import NUM_SETTINGS, SETTINGS_SCHEMA, operator
from obverse.kernels.weight_rule import RowInputs, WeightRule, check_inputs

__all__ = ["linear_row_losses", "linear_total_loss"]

_ROWS = (
    "Tensor hidden, Tensor head_weight, Tensor? bias, Tensor target, Tensor? sample_weight, Tensor? log_quality, "
    "Tensor? log_diversity, Tensor? class_weight"
)
_NUM_ROWS = 8


def _run(args: tuple[Any, ...], upstream: Tensor, wanted: Wanted) -> tuple[Any, ...]:
    hidden, head, bias, target, *weights = args[:_NUM_ROWS]
    *settings, kernel = args[_NUM_ROWS : _NUM_ROWS + NUM_SETTINGS]
    rule, inputs = WeightRule(*settings), RowInputs(*weights)
    return linear_rows(LinearJob(hidden, head, bias, target, rule, inputs, upstream.float(), wanted, kernel))


def _rows_impl(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    fields, clipped, _ = _run(args, args[0].new_zeros(args[0].shape[0], dtype=torch.float32), Wanted(*[False] * 3))
    return fields[0].clone(), fields, clipped


def _gradients_impl(*args: Any) -> tuple[Tensor, ...]:
    *_, upstream, wanted = args
    return tuple(_run(args, upstream, Wanted(*wanted))[2])


def _total_impl(*args: Any) -> tuple[Tensor, ...]:
    *_, denominator, wanted = args
    hidden, target, ignore_index = args[0], args[3], args[_NUM_ROWS + 5]
    below = (target != ignore_index).sum().clamp_min(1) if denominator is None else denominator
    scale = torch.where(below != 0, 1 / below.double(), 0.0).reshape(1)
    fields, clipped, made = _run(args, scale.float().expand(hidden.shape[0]), Wanted(*wanted))
    total = (fields[0].sum(dtype=torch.float64) * scale.reshape(())).float()
    return total, fields, clipped, *made


def _fake_gradients(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    hidden, head = args[:2]
    shapes = (hidden.shape, head.shape, head.shape[:1])
    return tuple(hidden.new_empty(s if w else 0) for s, w in zip(shapes, args[-1], strict=True))


def _rows_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    fields, clipped = fake_fields(args[0])
    return fields.new_empty(args[0].shape[0]), fields, clipped


def _gradients_fake(*args: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(args)


def _total_fake(*args: Any) -> tuple[Tensor, ...]:
    fields, clipped = fake_fields(args[0])
    return fields.new_empty(()), fields, clipped, *_fake_gradients(args)


def _save(ctx: Any, args: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*args[:_NUM_ROWS])
    ctx.settings = args[_NUM_ROWS : _NUM_ROWS + NUM_SETTINGS]
    ctx.num_inputs = len(args)
    ctx.set_materialize_grads(False)


def _wanted(ctx: Any) -> list[bool]:
    return [bool(need) for need in ctx.needs_input_grad[:3]]


def _hand_back(ctx: Any, made: Any) -> tuple[Tensor | None, ...]:
    others: int = ctx.num_inputs - 3
    given = tuple(g if w else None for g, w in zip(made, _wanted(ctx), strict=True))
    return (*given, *(None,) * others)


def _rows_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs)
    ctx.mark_non_differentiable(*output[1:])


def _rows_backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return _hand_back(ctx, (None, None, None))
    return _hand_back(ctx, _gradients_op(*ctx.saved_tensors, *ctx.settings, upstream, _wanted(ctx)))


def _total_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs)
    ctx.mark_non_differentiable(*output[1:])
    ctx.made, ctx.denominator = output[3:], inputs[-2]


def _total_backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    made, ctx.made = ctx.made, None
    if upstream is None:
        return _hand_back(ctx, (None, None, None))
    if made is not None and not torch.is_grad_enabled():
        for gradient in made:
            ce_scale_(gradient, upstream, ctx.settings[-1])
        return _hand_back(ctx, made)
    target, ignore_index = ctx.saved_tensors[3], ctx.settings[5]
    below = (target != ignore_index).sum().clamp_min(1) if ctx.denominator is None else ctx.denominator
    each = divided(upstream, below).expand(target.shape[0])
    return _hand_back(ctx, _gradients_op(*ctx.saved_tensors, *ctx.settings, each, _wanted(ctx)))


def _gradients_backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    raise RuntimeError("the fused linear cross-entropy has no second derivative; kernel='reference' has")


_rows_op = operator(
    f"linear_ce_rows({_ROWS}, {SETTINGS_SCHEMA}) -> (Tensor loss, Tensor fields, Tensor clipped)",
    _rows_impl,
    _rows_fake,
    context=_rows_context,
    backward=_rows_backward,
)
_gradients_op = operator(
    f"linear_ce_gradients({_ROWS}, {SETTINGS_SCHEMA}, Tensor upstream, bool[] wanted) "
    "-> (Tensor d_hidden, Tensor d_head_weight, Tensor d_bias)",
    _gradients_impl,
    _gradients_fake,
    backward=_gradients_backward,
)
_total_op = operator(
    f"linear_ce_total({_ROWS}, {SETTINGS_SCHEMA}, Tensor? denominator, bool[] wanted) "
    "-> (Tensor total, Tensor fields, Tensor clipped, Tensor d_hidden, Tensor d_head_weight, Tensor d_bias)",
    _total_impl,
    _total_fake,
    context=_total_context,
    backward=_total_backward,
)


def linear_row_losses(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    *,
    bias: Tensor | None = None,
    kernel: launch.Kernel = "auto",
) -> RowLosses:
    """`reference.row_losses` of ``hidden @ head_weight.T + bias``; the backward pass makes the logits again.

    ``hidden`` [N, D], ``head_weight`` [V, D], ``bias`` [V] in one dtype and on one device (under autocast in its
    dtype); ``target`` int64 [N]. Raises ValueError for what can't work.
    """
    arguments = _prepare(hidden, head_weight, target, rule, inputs, bias, kernel)
    if isinstance(arguments, RowLosses):
        return arguments
    loss, fields, clipped = _rows_op(*arguments)
    return RowLosses(loss, fields[1], fields[2], fields[3], clipped, target != rule.ignore_index)


def linear_total_loss(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    *,
    bias: Tensor | None = None,
    denominator: Tensor | None = None,
    kernel: launch.Kernel = "auto",
) -> tuple[Tensor, RowLosses]:
    """The sum of `linear_row_losses` over ``denominator`` (None: the counted rows), and the rows, detached.

    Three matrix products in all where gradients will be wanted, which the forward pass makes.
    """
    arguments = _prepare(hidden, head_weight, target, rule, inputs, bias, kernel)
    if isinstance(arguments, RowLosses):
        return reference.divided_total(arguments, denominator), arguments._replace(loss=arguments.loss.detach())
    leading = arguments[:3]
    wanted = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in leading]
    total, fields, clipped, *_ = _total_op(*arguments, denominator, wanted)
    return total, RowLosses(fields[0], fields[1], fields[2], fields[3], clipped, target != rule.ignore_index)


def _prepare(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    rule: WeightRule,
    inputs: RowInputs,
    bias: Tensor | None,
    kernel: launch.Kernel,
) -> tuple[Any, ...] | RowLosses:
    """The operators' arguments, or, where the reference runs, its answer."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        # As torch's own linear does. A custom operator's own registration could know one dtype only.
        dtype = torch.get_autocast_dtype(device)
        hidden, head_weight = hidden.to(dtype), head_weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(hidden, head_weight, target, rule, inputs, bias)
    weight_gradients = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs)
    name = launch.choose(kernel, hidden, weight_gradients=weight_gradients)
    if name == "reference":
        x = torch.where((target != rule.ignore_index)[:, None], hidden, 0.0)
        logits = torch.nn.functional.linear(x, head_weight, bias)
        return reference.row_losses(logits, target, rule, **inputs._asdict())
    leading = (t if t.shape[1] <= 1 or t.stride(1) == 1 else t.contiguous() for t in (hidden, head_weight))
    weights = (None if v is None else v.detach().to(torch.float32).contiguous() for v in inputs)
    return (*leading, None if bias is None else bias.contiguous(), target.contiguous(), *weights, *rule, name)


def _check(
    hidden: Tensor, head_weight: Tensor, target: Tensor, rule: WeightRule, inputs: RowInputs, bias: Tensor | None
) -> None:
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden: expected a float tensor [N, D], saw {hidden.dtype} {list(hidden.shape)}")
    num_rows, width = hidden.shape
    if head_weight.ndim != 2 or head_weight.shape[1] != width or head_weight.shape[0] < 1:
        raise ValueError(f"head_weight: expected [V >= 1, {width}], saw {list(head_weight.shape)}")
    given = {name: values for name, values in inputs._asdict().items() if values is not None}
    check_inputs(rule.scheme, set(given))
    expected = {"target": [num_rows], "bias": [head_weight.shape[0]], "class_weight": [head_weight.shape[0]]}
    if target.dtype != torch.int64:
        raise ValueError(f"target: expected int64 [{num_rows}], saw {target.dtype} {list(target.shape)}")
    others = {"head_weight": head_weight, "bias": bias, "target": target, **given}
    for name, values in others.items():
        if values is None:
            continue
        if name != "head_weight" and list(values.shape) != expected.get(name, [num_rows]):
            raise ValueError(f"{name}: expected {expected.get(name, [num_rows])}, saw {list(values.shape)}")
        if values.device != hidden.device:
            raise ValueError(f"{name}: expected on {hidden.device} as hidden is, saw {values.device}")
        if name in ("head_weight", "bias") and values.dtype != hidden.dtype:
            raise ValueError(f"{name}: expected {hidden.dtype} as hidden is, saw {values.dtype}")
