"""The loss over a linear head against float64 truth: both ways of making its products, every feature, awkward sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from obverse.kernels import linear_ce, reference
from obverse.kernels.launch import triton_interprets
from obverse.kernels.linear_cross_entropy import linear_row_losses, linear_total_loss
from obverse.kernels.weight_rule import RowInputs, Scheme, WeightRule, make_rule

Where = tuple[Any, str]
WeightsFor = Callable[..., dict[str, Tensor]]

SIZES = [(1, 1, 1), (5, 3, 2), (70, 17, 33), (37, 65, 130), (130, 33, 1001)]


@pytest.fixture(params=["own products", "library's products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a CPU the core's own matrix products, or torch's a chunk of rows at a time, with small chunks."""
    chosen: str = request.param
    if chosen == "own products":
        if triton_interprets():
            pytest.skip("the interpreter's products are the library's")
        return chosen
    monkeypatch.setattr(linear_ce, "_native", lambda *_: False)
    monkeypatch.setattr(linear_ce, "rows_a_chunk", lambda *_: 64)
    return chosen


def problem_of(n: int, d: int, v: int, rng: torch.Generator, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = torch.randn(n, d, generator=rng)
    head = 3 * torch.randn(v, d, generator=rng) / d**0.5
    bias = torch.randn(v, generator=rng)
    target = torch.randint(0, v, (n,), generator=rng)
    target[3::5] = -100
    return hidden.to(device), head.to(device), bias.to(device), target.to(device)


def truth_of(
    leaves: list[Tensor], target: Tensor, rule: WeightRule, given: dict[str, Tensor], upstream: Tensor
) -> tuple[reference.RowLosses, list[Tensor]]:
    """Rows, and the gradients of sum(upstream * loss), in float64."""
    exact = [t.detach().double().requires_grad_() for t in leaves]
    x = torch.where((target != rule.ignore_index)[:, None], exact[0], 0.0)
    logits = F.linear(x, exact[1], exact[2] if len(exact) == 3 else None)
    rows = reference.row_losses(logits, target, rule, **{k: v.double() for k, v in given.items()})
    (rows.loss * upstream.double()).sum().backward()
    return rows, [t.grad for t in exact if t.grad is not None]


def assert_near(got: Tensor | None, truth: Tensor, relative: float, reach: Tensor | float = 0.0) -> None:
    """Elementwise, relative to the largest entry: sums of products cancel. ``reach`` is the size of what the entries
    are made of, of which 16 units in the last place (2e-6) may be lost: few rows whose target has a probability near
    1 have gradients, p - 1, far below it.
    """
    assert got is not None
    error, scale = (got.double() - truth).abs(), truth.abs().max()
    allowed = relative * scale + 2e-6 * reach + 1e-12
    assert bool((error <= allowed).all()), f"{(error.max() / allowed).item():.3g} times what is allowed"


def reaches(leaves: list[Tensor], rows: reference.RowLosses, upstream: Tensor) -> list[float]:
    """For the gradient of each leaf, what its entries are made of: |upstream| weight |other factor|, with no sign."""
    lse = torch.nan_to_num(rows.lse.detach().abs(), posinf=0.0)
    row = (upstream.double().abs() * (rows.weight.detach().abs() + rows.loss.detach().abs()) * (1 + lse))[:, None]
    hidden, head = torch.nan_to_num(leaves[0].detach().double(), posinf=0.0, neginf=0.0), leaves[1].detach().double()
    sums = [(row * head.abs().amax(0)).max(), (row * hidden.abs()).sum(0).max(), row.sum()]
    return [float(value) for value in sums[: len(leaves)]]


@pytest.mark.parametrize("scheme", ["plain", "sample_weight", "imp", "dimp", "focal"])
@pytest.mark.parametrize("featured", [False, True])
def test_kernels_linear_matches_truth(
    where: Where, products: str, scheme: Scheme, featured: bool, rng: torch.Generator, weights_for: WeightsFor
) -> None:
    kernel, device = where
    extra: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-3} if featured else {}
    rule = make_rule(scheme, gamma=1.5 if scheme == "focal" else 1.0, weight_clip=(0.1, 10.0), **extra)
    for n, d, v in SIZES:
        hidden, head, bias, target = problem_of(n, d, v, rng, device)
        given = weights_for(n, scheme, device)
        if featured:
            given["class_weight"] = (2 * torch.rand(v, generator=rng)).to(device)
        leaves = [t.clone().requires_grad_() for t in ((hidden, head, bias) if featured else (hidden, head))]
        inputs = RowInputs(**given)
        total, rows = linear_total_loss(
            *leaves[:2], target, rule, inputs, bias=leaves[2] if featured else None, kernel=kernel
        )
        (-1.5 * total).backward()
        count = max(1, int((target != -100).sum()))
        upstream = torch.full((n,), -1.5 / count, device=device)
        truth, gradients = truth_of(leaves, target, rule, given, upstream)
        reach = truth.weight.detach().abs() * (1 + truth.lse.detach().abs())
        assert_near(total.reshape(1), truth.loss.detach().sum().reshape(1) / count, 1e-4, reach.sum() / count)
        assert_near(rows.loss, truth.loss.detach(), 2e-5, reach)
        assert_near(rows.log_prob, truth.log_prob, 1e-5, 1 + truth.lse.detach().abs())
        assert torch.equal(rows.clipped, truth.clipped)
        for leaf, gradient, size in zip(leaves, gradients, reaches(leaves, truth, upstream), strict=True):
            assert_near(leaf.grad, gradient, 2e-5, size)


def test_kernels_linear_rows_take_any_upstream(where: Where, products: str, rng: torch.Generator) -> None:
    """Reduction none: each row its own upstream, zero and negative too. Here libraries scaled by the first row's."""
    kernel, device = where
    rule = make_rule("dimp", weight_clip=(0.1, 10.0))
    hidden, head, bias, target = problem_of(150, 19, 77, rng, device)
    log_quality = (-torch.rand(150, generator=rng)).to(device)
    upstream = torch.randn(150, generator=rng).to(device)
    upstream[::7] = 0.0
    leaves = [t.clone().requires_grad_() for t in (hidden, head, bias)]
    inputs = RowInputs(log_quality=log_quality)
    rows = linear_row_losses(*leaves[:2], target, rule, inputs, bias=leaves[2], kernel=kernel)
    (rows.loss * upstream).sum().backward()
    truth, gradients = truth_of(leaves, target, rule, {"log_quality": log_quality}, upstream)
    assert_near(rows.loss.detach(), truth.loss.detach(), 1e-5)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert_near(leaf.grad, gradient, 2e-5)


@pytest.mark.parametrize("count", [0, 70])
def test_kernels_linear_ignored_rows_may_hold_anything(
    where: Where, products: str, count: int, rng: torch.Generator
) -> None:
    """Half of the rows, or all of them, ignored: their NaN and inf reach nothing, and their gradients are 0."""
    kernel, device = where
    hidden, head, bias, target = problem_of(140, 9, 31, rng, device)
    target[: 140 - count] = -100
    target[140 - count :] = 3
    hidden[: 140 - count] = float("nan")
    hidden[0] = float("inf")
    leaves = [t.clone().requires_grad_() for t in (hidden, head, bias)]
    rule = make_rule("plain")
    total, rows = linear_total_loss(*leaves[:2], target, rule, RowInputs(), bias=leaves[2], kernel=kernel)
    total.backward()
    upstream = torch.full((140,), 1 / max(1, count), device=device)
    clean = [torch.where((target != -100)[:, None], leaves[0].detach(), 0.0), *leaves[1:]]
    truth, gradients = truth_of(clean, target, rule, {}, upstream)
    assert total.item() == pytest.approx(truth.loss.sum().item() / max(1, count), rel=1e-5)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert_near(leaf.grad, gradient, 2e-5)
    assert leaves[0].grad is not None
    assert torch.equal(leaves[0].grad[: 140 - count], torch.zeros(140 - count, 9, device=device))
    assert rows.loss[: 140 - count].abs().sum().item() == 0.0


def test_kernels_linear_strides_and_unwanted_gradients(where: Where, products: str, rng: torch.Generator) -> None:
    kernel, device = where
    hidden, head, _, target = problem_of(80, 24, 50, rng, device)
    rule = make_rule("plain")
    upstream = torch.full((80,), 1 / int((target != -100).sum()), device=device)
    truth, gradients = truth_of([hidden, head], target, rule, {}, upstream)
    wide = torch.zeros(80, 40, device=device)
    wide[:, 7:31] = hidden
    for made in (wide[:, 7:31], hidden.t().contiguous().t()):
        for wanted in ((True, False), (False, True), (True, True)):
            leaves = [t.detach().requires_grad_(w) for t, w in zip((made, head), wanted, strict=True)]
            total, _ = linear_total_loss(*leaves, target, rule, RowInputs(), kernel=kernel)
            total.backward()
            for leaf, gradient, want in zip(leaves, gradients, wanted, strict=True):
                assert (leaf.grad is not None) == want
                if want:
                    assert_near(leaf.grad, gradient, 2e-5)
    with torch.no_grad():
        total, _ = linear_total_loss(made, head, target, rule, RowInputs(), kernel=kernel)
    assert total.item() == pytest.approx((truth.loss * upstream).sum().item(), rel=1e-5)


@pytest.mark.skipif(triton_interprets(), reason="the interpreter rounds bfloat16 its own way")
def test_kernels_linear_bfloat16_is_no_worse_than_torch(where: Where, products: str, rng: torch.Generator) -> None:
    """The same bfloat16 inputs: our errors against float64 within those of torch's composition plus one ulp."""
    kernel, device = where
    n, d, v = 300, 64, 2000
    hidden, head, bias, target = (
        t if t.dtype == torch.int64 else t.bfloat16() for t in problem_of(n, d, v, rng, device)
    )
    log_quality = (-torch.rand(n, generator=rng)).to(device)
    rule = make_rule("dimp", weight_clip=(0.1, 10.0))
    upstream = torch.full((n,), 1 / int((target != -100).sum()), device=device)
    ours, theirs = ([t.clone().requires_grad_() for t in (hidden, head, bias)] for _ in range(2))
    inputs = RowInputs(log_quality=log_quality)
    total, _ = linear_total_loss(*ours[:2], target, rule, inputs, bias=ours[2], kernel=kernel)
    total.backward()
    nll = F.cross_entropy(F.linear(*theirs), target, reduction="none").float()
    weight = (log_quality + nll.detach()).exp().clamp(0.1, 10.0)
    peer = (torch.where(target == -100, 0.0, weight) * nll).sum() / (target != -100).sum()
    peer.backward()
    truth, gradients = truth_of(ours, target, rule, {"log_quality": log_quality}, upstream)
    exact = (truth.loss * upstream).sum()
    # Only our own products leave the logits unrounded.
    unrounded = products == "own products" and kernel == "cpp"
    slack = 1e-5 if unrounded else (peer.double() - exact).abs() / exact + 2e-4
    assert (total.double() - exact).abs() <= slack * exact
    for mine, other, gradient in zip(ours, theirs, gradients, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        error, peer_error = (mine.grad.double() - gradient).abs(), (other.grad.double() - gradient).abs()
        # The library rounds each chunk's part of d head_weight to bfloat16, which doubles the rounding's variance.
        own = products == "own products"
        assert error.max() <= peer_error.max() + (2**-8 if own else 2**-7) * gradient.abs().max()
        assert error.square().mean() <= (1.1 if own else 2.2) * peer_error.square().mean()


@pytest.mark.skipif(triton_interprets(), reason="the C++ kernels' own")
def test_kernels_linear_repeats_bit_for_bit(rng: torch.Generator) -> None:
    """With one number of threads; another one changes the last digits of the sums over classes."""
    hidden, head, bias, target = problem_of(190, 40, 900, rng, "cpu")
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (hidden, head, bias)]
            total, _ = linear_total_loss(*leaves[:2], target, make_rule(), RowInputs(), bias=leaves[2], kernel="cpp")
            total.backward()
            seen.append([total.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        torch.set_num_threads(before)
    for one, two, again in zip(*seen, strict=True):
        assert one is not None
        assert two is not None
        assert again is not None
        assert torch.equal(two, again)
        assert_near(one, two.double(), 1e-5)
