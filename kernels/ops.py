"""The weighted cross-entropy as operators of torch, so that torch.compile, torch.func and autocast see through it.

``torch.ops.obverse.ce_forward`` gives every row its loss; ``ce_backward`` its gradient from what the forward pass
left; ``ce_total`` the loss of the batch *and* its gradient in one pass over the logits; ``ce_scale_`` multiplies that
gradient by the upstream one, which mostly is 1 and costs nothing then. All are deterministic.

``kernel`` names an implementation as `launch.choose` found it. The functions under ``_impl`` run on real tensors;
those under ``_fake`` say only shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from obverse.kernels import reference
from obverse.kernels.register import NUM_SETTINGS, SETTINGS_SCHEMA, operator
from obverse.kernels.weight_rule import NUM_FIELDS, RowInputs, WeightRule

__all__ = [
    "TotalInPlace",
    "ce_backward",
    "ce_forward",
    "ce_scale_",
    "ce_total",
    "ce_total_",
    "fake_fields",
    "implementation",
    "total",
]

_ROWS = (
    "Tensor logits, Tensor target, Tensor? sample_weight, Tensor? log_quality, Tensor? log_diversity, "
    "Tensor? class_weight"
)
_NUM_ROWS = 6


def implementation(kernel: str) -> tuple[Any, dict[str, int]]:
    """The module that has ``kernel``, and what its functions take besides."""
    if kernel == "triton":
        from obverse.kernels import weighted_ce

        return weighted_ce, {}
    from obverse.kernels import native_ce

    return native_ce, {"isa": native_ce.isa_of(kernel)}


def _split(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, RowInputs, WeightRule, str, tuple[Any, ...]]:
    """An operator's arguments, which are `_ROWS`, the settings and its own."""
    logits, target, *weights = args[:_NUM_ROWS]
    *settings, kernel = args[_NUM_ROWS : _NUM_ROWS + NUM_SETTINGS]
    return logits, target, RowInputs(*weights), WeightRule(*settings), kernel, args[_NUM_ROWS + NUM_SETTINGS :]


def _forward_impl(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, target, inputs, rule, kernel, _ = _split(args)
    module, options = implementation(kernel)
    fields, clipped = module.forward_rows(logits, target, rule, inputs, **options)
    # The loss is copied out: a caller may change it in place, and the saved figures must not change with it.
    return fields[0].clone(), fields, clipped


def _backward_impl(*args: Any) -> Tensor:
    logits, target, inputs, rule, kernel, (fields, upstream) = _split(args)
    module, options = implementation(kernel)
    gradient: Tensor = module.backward_rows(logits, target, rule, inputs, fields, upstream, **options)
    return gradient


def _total_impl(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits, target, inputs, rule, kernel, (denominator,) = _split(args)
    module, options = implementation(kernel)
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return *module.fused_mean(logits, target, rule, inputs, denominator, gradient, **options), gradient


def _total_in_place_impl(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, target, inputs, rule, kernel, (denominator,) = _split(args)
    module, options = implementation(kernel)
    found: tuple[Tensor, Tensor, Tensor] = module.fused_mean(
        logits, target, rule, inputs, denominator, logits, **options
    )
    # The kernel wrote behind autograd's back: who saved the logits for a backward pass of its own must be told.
    torch.autograd.graph.increment_version(logits)
    return found


def _scale_impl(gradient: Tensor, factor: Tensor, kernel: str) -> None:
    implementation(kernel)[0].scale_(gradient, factor)


def fake_fields(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for fields and clipped where only shapes are asked for; rows as ``logits`` has them."""
    num_rows = logits.shape[0]
    return (
        logits.new_empty((NUM_FIELDS, num_rows), dtype=torch.float32),
        logits.new_empty(num_rows, dtype=torch.int8),
    )


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    fields, clipped = fake_fields(args[0])
    return fields.new_empty(args[0].shape[0]), fields, clipped


def _backward_fake(*args: Any) -> Tensor:
    logits: Tensor = args[0]
    return logits.new_empty(logits.shape)


def _total_in_place_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    fields, clipped = fake_fields(args[0])
    return fields.new_empty(()), fields, clipped


def _total_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_total_in_place_fake(*args), _backward_fake(*args)


def _scale_fake(gradient: Tensor, factor: Tensor, kernel: str) -> None:
    return None


def divided(upstream: Tensor, denominator: Tensor) -> Tensor:
    """``upstream / denominator``, a scalar; 0 over 0, as the loss is."""
    below = denominator.reshape(())
    return torch.where(below != 0, upstream / torch.where(below != 0, below, 1), 0.0)


def _save(ctx: Any, args: tuple[Any, ...], *more: Tensor) -> None:
    ctx.save_for_backward(*args[:_NUM_ROWS], *more)
    ctx.settings = args[_NUM_ROWS : _NUM_ROWS + NUM_SETTINGS]
    ctx.num_inputs = len(args)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    others: int = ctx.num_inputs - 1
    return (gradient, *(None,) * others)


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output[1])
    ctx.mark_non_differentiable(*output[1:])


def _forward_backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None or not ctx.needs_input_grad[0]:
        return _gradients(ctx, None)
    *rows, fields = ctx.saved_tensors
    return _gradients(ctx, ce_backward(*rows, *ctx.settings, fields, upstream))


def _total_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, fields, _, gradient = output
    denominator = inputs[-1]
    _save(ctx, inputs, fields, *([] if denominator is None else [denominator]))
    ctx.mark_non_differentiable(*output[1:])
    # Not among the saved tensors: it is handed on once, and scaled in place; a second pass makes it anew.
    ctx.gradient = gradient


def _total_backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None or not ctx.needs_input_grad[0]:
        return _gradients(ctx, None)
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is not None and not torch.is_grad_enabled():
        (_scale_impl if _is_plain(gradient) else ce_scale_)(gradient, upstream, ctx.settings[-1])
        return _gradients(ctx, gradient)
    rows, (fields, *given) = ctx.saved_tensors[:_NUM_ROWS], ctx.saved_tensors[_NUM_ROWS:]
    logits, target = rows[:2]
    if given:
        denominator = given[0]
    elif target.is_floating_point():
        denominator = upstream.new_full((), float(max(1, logits.shape[0])))
    else:
        denominator = (target != WeightRule(*ctx.settings[:-1]).ignore_index).sum().clamp_min(1)
    each = divided(upstream, denominator).expand(logits.shape[0])
    return _gradients(ctx, ce_backward(*rows, *ctx.settings, fields, each))


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save(ctx, inputs, inputs[-1])


def _backward_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient's own gradient, by the reference: to the logits and to what came from above."""
    if upstream is None:
        return _gradients(ctx, None)
    logits, target, *weights, above = ctx.saved_tensors
    rule = WeightRule(*ctx.settings[:-1])
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        z, u = (t if further and t.requires_grad else t.detach().requires_grad_() for t in (logits, above))
        rows = reference.row_losses(z, target, rule, **RowInputs(*weights)._asdict())
        (gradient,) = torch.autograd.grad(rows.loss, z, u.to(rows.loss.dtype), create_graph=True)
        to_logits, to_above = torch.autograd.grad(gradient, (z, u), upstream, create_graph=further)
    others: int = ctx.num_inputs - 2
    return (to_logits, *(None,) * others, to_above)


ce_forward = operator(
    f"ce_forward({_ROWS}, {SETTINGS_SCHEMA}) -> (Tensor loss, Tensor fields, Tensor clipped)",
    _forward_impl,
    _forward_fake,
    context=_forward_context,
    backward=_forward_backward,
)
ce_backward = operator(
    f"ce_backward({_ROWS}, {SETTINGS_SCHEMA}, Tensor fields, Tensor upstream) -> Tensor",
    _backward_impl,
    _backward_fake,
    context=_backward_context,
    backward=_backward_backward,
)
ce_total = operator(
    f"ce_total({_ROWS}, {SETTINGS_SCHEMA}, Tensor? denominator) "
    "-> (Tensor total, Tensor fields, Tensor clipped, Tensor gradient)",
    _total_impl,
    _total_fake,
    context=_total_context,
    backward=_total_backward,
)
ce_total_ = operator(
    f"ce_total_({_ROWS.replace('Tensor', 'Tensor(a!)', 1)}, {SETTINGS_SCHEMA}, Tensor? denominator) "
    "-> (Tensor total, Tensor fields, Tensor clipped)",
    _total_in_place_impl,
    _total_in_place_fake,
)
ce_scale_ = operator("ce_scale_(Tensor(a!) gradient, Tensor factor, str kernel) -> ()", _scale_impl, _scale_fake)


def _is_plain(values: Tensor) -> bool:
    """Whether nobody looks on: no tracing, no tensor of another class."""
    return type(values) is Tensor and not torch.compiler.is_compiling()


class _Total(torch.autograd.Function):
    """`ce_total` past torch's dispatcher, which takes longer than the kernel does on a small batch."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The operator's."""
        output = _total_impl(*args)
        _total_context(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """The operator's."""
        return _total_backward(ctx, *upstream)


def total(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ce_total`, the shortest way there is to it."""
    found: tuple[Tensor, Tensor, Tensor, Tensor] = (
        _Total.apply(*args) if _is_plain(args[0]) else ce_total(*args)  # type: ignore[no-untyped-call]
    )
    return found


class TotalInPlace(torch.autograd.Function):
    """`ce_total` whose gradient takes the logits' memory: one backward pass, and no gradient of the gradient."""

    @staticmethod
    def forward(ctx: Any, denominator: Tensor | None, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Total (a scalar), fields and clipped, as `ce_total`; ``args`` are the operator's after the logits."""
        gradient = logits.detach()
        total, fields, clipped = ce_total_(gradient, *args, denominator)
        ctx.mark_non_differentiable(fields, clipped)
        ctx.set_materialize_grads(False)
        ctx.gradient, ctx.kernel, ctx.num_args = gradient, args[-1], len(args)
        return total, fields, clipped

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient that the forward pass left, scaled. Raises RuntimeError the second time."""
        gradient, ctx.gradient = ctx.gradient, None
        num_args: int = ctx.num_args
        if upstream is None:
            return (None,) * (2 + num_args)
        if gradient is None or torch.is_grad_enabled():
            raise RuntimeError("a loss with inplace=True gave its logits away: it has one backward pass, once")
        ce_scale_(gradient, upstream, ctx.kernel)
        return (None, gradient, *(None,) * num_args)
