"""Loss and gradient in one pass (`cross_entropy.total_loss`), with every feature, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from obverse.kernels import reference
from obverse.kernels.cross_entropy import row_losses, total_loss
from obverse.kernels.weight_rule import Scheme, WeightRule, make_rule

Where = tuple[Any, str]
RowsFor = Callable[..., tuple[Tensor, Tensor, Tensor]]
WeightsFor = Callable[..., dict[str, Tensor]]

SIZES = [(1, 1), (1, 2), (70, 3), (37, 16), (33, 17), (19, 64), (9, 65), (7, 1000), (3, 4099)]
FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("sample_weight", {"label_smoothing": 0.1}),
    ("imp", {"z_loss": 1e-2}),
    ("dimp", {"weight_clip": (0.1, 10.0), "label_smoothing": 0.2, "z_loss": 1e-3}),
    ("focal", {"gamma": 2.0}),
    ("focal", {"gamma": 1.5, "label_smoothing": 0.1, "z_loss": 1e-3, "focal_detached": True}),
]


def truth_of(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    given: dict[str, Tensor],
    denominator: Tensor | None,
    factor: float,
) -> tuple[Tensor, Tensor, reference.RowLosses]:
    """Total, its gradient times ``factor``, and the rows, all in float64."""
    z = logits.detach().double().requires_grad_()
    rows = reference.row_losses(z, target, rule, **{k: v.double() for k, v in given.items()})
    below = rows.counted.sum().clamp_min(1) if denominator is None else denominator.double()
    total = rows.loss.sum() / below
    (factor * total).backward()
    assert z.grad is not None
    return total.detach(), z.grad, rows


def assert_near(got: Tensor, truth: Tensor, scale: Tensor, relative: float) -> None:
    """|got - truth| <= relative * scale, elementwise; scale is the size of what the figure is made of."""
    error = (got.double() - truth).abs()
    worst = (error / (relative * scale.double() + 1e-30)).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"{worst:.3g} times the allowed error; seen {error.max().item():.3g}"


def check_total(
    where: Where,
    problem: tuple[Tensor, Tensor],
    rule: WeightRule,
    given: dict[str, Tensor],
    *,
    denominator: Tensor | None = None,
    factor: float = 1.0,
    inplace: bool = False,
) -> None:
    logits, target = problem
    truth, gradient, rows64 = truth_of(logits, target, rule, given, denominator, factor)
    leaf = logits.clone().requires_grad_()
    z = leaf * 1 if inplace else leaf
    total, rows = total_loss(z, target, rule, **given, denominator=denominator, inplace=inplace, kernel=where[0])
    (factor * total).backward()
    assert leaf.grad is not None
    reach = logits.abs().amax(1).double() + 1
    below = rows64.counted.sum().clamp_min(1) if denominator is None else denominator.double()
    # The weight without the class's, which may be 0: what the z-loss and the other classes are multiplied by.
    bare = {k: v for k, v in given.items() if k != "class_weight"}
    weight = reference.row_losses(logits, target, rule, **bare).weight.double().abs()
    size = (rows64.weight.abs() + weight + rows64.loss.abs().detach()) * reach
    assert_near(total, truth, size.sum() / below + 1e-12, 3e-6)
    assert_near(leaf.grad, gradient, (size * abs(factor) / below)[:, None].expand_as(gradient), 6e-6)
    assert_near(rows.loss, rows64.loss.detach(), size, 3e-6)
    assert torch.equal(rows.clipped, rows64.clipped)


@pytest.mark.parametrize(("scheme", "settings"), FEATURES, ids=[f"{s}-{len(k)}" for s, k in FEATURES])
@pytest.mark.parametrize("classes", [False, True], ids=["", "class-weights"])
def test_kernels_total_and_gradient_match_truth(
    where: Where,
    scheme: Scheme,
    settings: dict[str, Any],
    classes: bool,
    rows_for: RowsFor,
    weights_for: WeightsFor,
    rng: torch.Generator,
) -> None:
    rule = make_rule(scheme, **settings)
    for n, v in SIZES:
        logits, target, _ = rows_for(n, v, where[1])
        given = weights_for(n, scheme, where[1])
        if classes:
            c = 3 * torch.rand(v, generator=rng)
            c[1::3] = 0.0
            given["class_weight"] = c.to(where[1])
        check_total(where, (logits, target), rule, given)


@pytest.mark.parametrize("factor", [0.0, -2.5])
@pytest.mark.parametrize("inplace", [False, True])
def test_kernels_total_denominator_factor_and_place(
    where: Where, factor: float, inplace: bool, rows_for: RowsFor, weights_for: WeightsFor
) -> None:
    rule = make_rule("dimp", weight_clip=(0.1, 10.0))
    for n, v in [(33, 5), (6, 3001)]:
        logits, target, _ = rows_for(n, v, where[1])
        given = weights_for(n, "dimp", where[1])
        for denominator in (None, torch.tensor(7.25, device=where[1])):
            check_total(where, (logits, target), rule, given, denominator=denominator, factor=factor, inplace=inplace)


@pytest.mark.parametrize("scheme", ["plain", "imp", "dimp"])
@pytest.mark.parametrize("classes", [False, True])
def test_kernels_soft_targets_match_truth(
    where: Where, scheme: Scheme, classes: bool, rows_for: RowsFor, weights_for: WeightsFor, rng: torch.Generator
) -> None:
    rule = make_rule(scheme, weight_clip=(0.1, 10.0), label_smoothing=0.1, z_loss=1e-3)
    for n, v in [(1, 1), (5, 3), (33, 17), (7, 1003), (2, 4099)]:
        logits, _, _ = rows_for(n, v, where[1])
        target = torch.rand(n, v, generator=rng).pow(8)
        target[:, 1::3] = 0.0
        target = (target / target.sum(1, keepdim=True).clamp_min(1e-9)).to(where[1])
        given = weights_for(n, scheme, where[1])
        if classes:
            given["class_weight"] = (2 * torch.rand(v, generator=rng)).to(where[1])
        check_total(where, (logits, target), rule, given)


def test_kernels_soft_one_hot_is_the_hard_target(where: Where, rows_for: RowsFor, weights_for: WeightsFor) -> None:
    logits, target, upstream = rows_for(23, 37, where[1])
    target = target.clamp_min(0)
    hot = torch.nn.functional.one_hot(target, 37).float()
    given = weights_for(23, "dimp", where[1])
    rule = make_rule("dimp", weight_clip=(0.1, 10.0), label_smoothing=0.1)
    seen = []
    for y in (target, hot):
        z = logits.clone().requires_grad_()
        rows = row_losses(z, y, rule, **given, kernel=where[0])
        (rows.loss * upstream).sum().backward()
        assert z.grad is not None
        seen.append((rows.loss.detach(), z.grad, rows.weight))
    for hard, soft in zip(*seen, strict=True):
        torch.testing.assert_close(hard, soft, rtol=1e-5, atol=1e-5 * float(seen[0][0].abs().max()))


def test_kernels_second_backward_and_retained_graph(where: Where, rows_for: RowsFor) -> None:
    """The gradient that the forward pass left is handed on once; what comes after must not see it changed."""
    logits, target, _ = rows_for(17, 301, where[1])
    rule = make_rule("plain")
    _, gradient, _ = truth_of(logits, target, rule, {}, None, 1.0)
    z = logits.clone().requires_grad_()
    total, _ = total_loss(z, target, rule, kernel=where[0])
    (first,) = torch.autograd.grad(3 * total, z, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(-5 * total, z, retain_graph=True)
    assert torch.equal(first, kept), "the second pass changed the first one's gradient"
    torch.testing.assert_close(first.double(), 3 * gradient, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(second.double(), -5 * gradient, rtol=1e-4, atol=1e-7)
    total.backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad.double(), gradient, rtol=1e-4, atol=1e-7)


def test_kernels_total_has_a_second_derivative(where: Where, rows_for: RowsFor) -> None:
    logits, target, _ = rows_for(6, 11, where[1], 1.0)
    rule = make_rule("dimp", weight_clip=None)
    log_quality = torch.full((6,), -0.5, device=where[1])
    seen = []
    for kernel, dtype in ((where[0], torch.float32), ("reference", torch.float64)):
        z = logits.to(dtype).requires_grad_()
        total, _ = total_loss(z, target, rule, log_quality=log_quality.to(dtype), kernel=kernel)
        (gradient,) = torch.autograd.grad(total.square(), z, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), z)
        seen.append(second)
    assert seen[1].abs().max() > 1e-3
    torch.testing.assert_close(seen[0].double(), seen[1], rtol=1e-3, atol=1e-5)


def test_kernels_in_place_gives_the_logits_away_once(where: Where, rows_for: RowsFor) -> None:
    logits, target, _ = rows_for(17, 301, where[1])
    leaf = logits.clone().requires_grad_()
    with pytest.raises(ValueError, match="a leaf"):
        total_loss(leaf, target, make_rule(), inplace=True, kernel=where[0])
    z = leaf * 1
    total, _ = total_loss(z, target, make_rule(), inplace=True, kernel=where[0])
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gave its logits away"):
        total.backward()
    saved = leaf.exp()  # keeps its own output for its backward pass
    total, _ = total_loss(saved, target, make_rule(), inplace=True, kernel=where[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_kernels_no_gradient_wanted_makes_none(where: Where, rows_for: RowsFor) -> None:
    logits, target, _ = rows_for(17, 301, where[1])
    before = logits.clone()
    truth, _, _ = truth_of(logits, target, make_rule(), {}, None, 1.0)
    with torch.inference_mode():
        total, rows = total_loss(logits, target, make_rule(), kernel=where[0])
    torch.testing.assert_close(total.double(), truth, rtol=1e-6, atol=0)
    assert torch.equal(logits, before)
    assert bool(rows.loss.isfinite().all())


@pytest.mark.parametrize("kernel", ["tested", "reference"])
def test_kernels_total_over_nothing_is_zero(where: Where, kernel: Any, rows_for: RowsFor) -> None:
    logits, target, _ = rows_for(7, 5, where[1])
    z = logits.requires_grad_()
    chosen = where[0] if kernel == "tested" else kernel
    total, _ = total_loss(z, target, make_rule(), denominator=torch.zeros((), device=where[1]), kernel=chosen)
    total.backward()
    assert total.item() == 0.0
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("n", [0, 9])
def test_kernels_total_of_nothing_is_zero(where: Where, n: int) -> None:
    logits = torch.full((n, 9), float("nan"), device=where[1], requires_grad=True)
    target = torch.full((n,), -100, device=where[1])
    total, _ = total_loss(logits, target, make_rule(), kernel=where[0])
    total.backward()
    assert total.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
