"""Every implementation against float64 truth, on fresh random inputs.

The same checks run on the C++ kernels of every instruction set here, on Triton in its interpreter (in a process of its
own, started by `test_kernels_interpreter`: the flag is read when a kernel is decorated) and on CUDA with ``-m gpu``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from obverse.kernels import cross_entropy, reference
from obverse.kernels.weight_rule import Scheme, WeightRule, make_rule

RowsFor = Callable[..., tuple[Tensor, Tensor, Tensor]]
WeightsFor = Callable[..., dict[str, Tensor]]

SCHEMES: list[tuple[Scheme, bool]] = [
    ("plain", False),
    ("sample_weight", False),
    ("imp", False),
    ("dimp", False),
    ("focal", False),
    ("focal", True),
]
# One column, fewer than a block, not a multiple of anything, and (9,001) three blocks of columns.
SIZES = [(1, 1), (1, 2), (5, 3), (130, 16), (33, 17), (7, 1000), (6, 9001)]


def _truth(
    logits: Tensor, target: Tensor, rule: WeightRule, upstream: Tensor, given: dict[str, Tensor]
) -> tuple[reference.RowLosses, Tensor]:
    z = logits.detach().double().requires_grad_()
    rows = reference.row_losses(z, target, rule, **{k: v.double() for k, v in given.items()})
    (rows.loss * upstream.double()).sum().backward()
    assert z.grad is not None
    return rows, z.grad


def _close(got: Tensor, truth: Tensor, relative: float, scale: Tensor) -> None:
    """|got - truth| <= relative * scale elementwise; scale says what the row's figures are made of."""
    error = (got.double() - truth.double()).abs()
    worst = (error / (relative * scale.double() + 1e-30)).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"{worst:.3g} times the allowed error; seen {error.max().item():.3g}"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("scheme", "detached"), SCHEMES)
def test_kernels_float32_loss_and_gradient_match_truth(
    where: tuple[Any, str], scheme: Scheme, detached: bool, smoothing: float, rows_for: RowsFor, weights_for: WeightsFor
) -> None:
    kernel, device = where
    rule = make_rule(scheme, gamma=1.3, weight_clip=(0.1, 10), label_smoothing=smoothing, focal_detached=detached)
    for n, v in SIZES:
        logits, target, upstream = rows_for(n, v, device)
        given = weights_for(n, scheme, device)
        truth, gradient = _truth(logits, target, rule, upstream, given)
        z = logits.clone().requires_grad_()
        rows = cross_entropy.row_losses(z, target, rule, kernel=kernel, **given)
        (rows.loss * upstream).sum().backward()
        assert z.grad is not None
        size = truth.weight.abs()
        # 16 ulp of float32 on figures of the size of the largest logit, times the weight.
        reach = logits.abs().amax(1).double() + 1
        _close(rows.loss, truth.loss, 2e-6, size * reach + truth.loss.abs())
        _close(rows.weight, truth.weight, 2e-6, size * reach)
        _close(rows.log_prob, truth.log_prob, 2e-6, reach)
        _close(rows.lse, truth.lse, 2e-6, reach)
        assert torch.equal(rows.clipped, truth.clipped)
        _close(z.grad, gradient, 4e-6, ((size + truth.loss.abs()) * reach * upstream.abs())[:, None])
        assert torch.equal(logits, z.detach()), "the logits were changed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["plain", "imp", "dimp", "focal"])
def test_kernels_low_precision_is_no_worse_than_torch(
    where: tuple[Any, str], dtype: torch.dtype, scheme: Scheme, rows_for: RowsFor, weights_for: WeightsFor
) -> None:
    kernel, device = where
    rule = make_rule(scheme, gamma=1.0, weight_clip=(0.1, 10))
    for n, v in [(40, 17), (9, 1003)]:
        logits, target, upstream = rows_for(n, v, device)
        logits = logits.to(dtype)
        given = weights_for(n, scheme, device)
        given.pop("sample_weight", None)
        upstream = upstream.to(dtype).float()  # torch's own path rounds it so
        truth, gradient = _truth(logits, target, rule, upstream, given)
        ours = logits.clone().requires_grad_()
        rows = cross_entropy.row_losses(ours, target, rule, kernel=kernel, **given)
        (rows.loss * upstream).sum().backward()
        peer = logits.clone().requires_grad_()
        peer_loss = _composed(peer, target, scheme, given)
        (peer_loss * upstream.to(peer_loss.dtype)).sum().backward()
        assert ours.grad is not None
        assert peer.grad is not None
        ulp = torch.finfo(dtype).eps
        loss_error = (rows.loss.double() - truth.loss).abs()
        peer_loss_error = (peer_loss.double() - truth.loss).abs()
        assert bool((loss_error <= peer_loss_error + 1e-5 * (1 + truth.loss.abs())).all())
        error, peer_error = (ours.grad.double() - gradient).abs(), (peer.grad.double() - gradient).abs()
        # One ulp of the gradient itself, for the interpreter truncates where the hardware rounds; float16 goes
        # subnormal below 6e-5.
        slack = ulp * gradient.abs() + (1e-7 if dtype == torch.float16 else 1e-9)
        assert bool((error <= peer_error + slack).all())
        assert loss_error.sum() < peer_loss_error.sum(), "torch keeps these losses in 8 or 11 bits; ours must not"


def _composed(logits: Tensor, target: Tensor, scheme: Scheme, given: dict[str, Tensor]) -> Tensor:
    """The same loss as one would write it in torch, in the logits' dtype throughout."""
    nll = F.cross_entropy(logits, target, reduction="none")
    held = nll.detach()
    if scheme == "plain":
        return nll
    if scheme == "focal":
        return (1 - (-nll).exp()) * nll
    log_weight = given["log_quality"] + held if scheme == "dimp" else given["log_quality"] - given["log_diversity"]
    return torch.where(target == -100, 0.0, log_weight.exp().clamp(0.1, 10).to(nll.dtype)) * nll


def test_kernels_scalar_upstream_and_strides(where: tuple[Any, str], rows_for: RowsFor, rng: torch.Generator) -> None:
    """A sum's backward gives an expanded (zero-stride) upstream; logits may be a slice or transposed."""
    kernel, device = where
    rule = make_rule("dimp", weight_clip=(0.1, 10))
    wide, target, _ = rows_for(21, 40, device)
    log_quality = -torch.rand(21, generator=rng).to(device)
    for make in (
        lambda z: z[:, 3:36],
        lambda z: z[::2].repeat_interleave(2, 0)[:21, :33],
        lambda z: z[:, :33].t().contiguous().t(),
        lambda z: z[:1, :33].expand(21, 33),
    ):
        base = wide.clone().requires_grad_()
        view = make(base)
        y = torch.where(target == -100, target, target % 33)
        cross_entropy.row_losses(view, y, rule, kernel=kernel, log_quality=log_quality).loss.sum().backward()
        base64 = wide.double().requires_grad_()
        seen = make(base64)
        truth = reference.row_losses(seen, y, rule, log_quality=log_quality)
        # An entry that several rows read gets the sum of their gradients, and of what each may be off by.
        reach = ((truth.weight.abs() + truth.loss.abs()) * (seen.abs().amax(1) + 1)).detach()
        (scale,) = torch.autograd.grad(seen, base64, reach[:, None].expand(seen.shape), retain_graph=True)
        truth.loss.sum().backward()
        assert base.grad is not None
        assert base64.grad is not None
        _close(base.grad, base64.grad, 4e-6, scale)


def test_kernels_all_rows_ignored_or_none_at_all(where: tuple[Any, str]) -> None:
    kernel, device = where
    rule = make_rule("dimp", label_smoothing=0.1)
    for n in (0, 4):
        logits = torch.full((n, 9), float("nan"), device=device, requires_grad=True)
        target = torch.full((n,), -100, device=device)
        log_quality = torch.zeros(n, device=device)
        rows = cross_entropy.row_losses(logits, target, rule, kernel=kernel, log_quality=log_quality)
        for normalisation in ("none", "batch", "self"):
            for reduction in ("sum", "mean"):
                loss = reference.reduce_rows(
                    rows.loss, rows.weight, rows.counted, normalisation=normalisation, reduction=reduction
                )
                assert loss.item() == 0.0
        loss.backward(retain_graph=True)
        assert logits.grad is not None
        assert torch.equal(logits.grad, torch.zeros_like(logits))
        assert rows.weight.tolist() == [0.0] * n
        assert rows.effective_sample_size().item() == 0.0
        assert rows.clipped_share().item() == 0.0


def test_kernels_ignored_rows_hide_nan_and_inf(where: tuple[Any, str]) -> None:
    kernel, device = where
    logits = torch.tensor([[1.0, 2.0, 0.5], [float("nan")] * 3, [float("inf"), 0, 0], [0.1, 0.2, 0.3]])
    logits = logits.to(device).requires_grad_()
    target = torch.tensor([1, 7, 7, 0], device=device)
    rule = make_rule("plain", ignore_index=7)
    rows = cross_entropy.row_losses(logits, target, rule, kernel=kernel)
    rows.loss.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[1:3], torch.zeros(2, 3, device=device))
    assert bool(logits.grad[[0, 3]].isfinite().all())
    assert rows.loss[1:3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scheme", ["plain", "dimp", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_kernels_extreme_logits(where: tuple[Any, str], scheme: Scheme, smoothing: float) -> None:
    """+-1e4, a shared offset of 1e4, masked (-inf) classes, a target that is nearly certain."""
    kernel, device = where
    inf = float("inf")
    logits = torch.tensor(
        [
            [1e4, -1e4, 0.0, 3.0],
            [-1e4, 1e4, 0.0, 3.0],
            [1e4, 1e4 - 1, 1e4 - 2, 1e4 - 3],
            [-1e4, -1e4 - 1, -1e4 - 2, -1e4 - 3],
            [20.0, 0.0, 1.0, -3.0],
            [12.0, 0.0, 1.0, -3.0],
            [2.0, 1.0, -inf, -inf] if smoothing == 0.0 else [2.0, 1.0, -50.0, -50.0],
        ],
        device=device,
    )
    target = torch.zeros(7, dtype=torch.int64, device=device)
    rule = make_rule(scheme, weight_clip=(1e-3, 1e3), label_smoothing=smoothing)
    given = {"log_quality": torch.full((7,), -1.0, device=device)} if scheme == "dimp" else {}
    truth, gradient = _truth(logits, target, rule, torch.ones(7, device=device), given)
    z = logits.clone().requires_grad_()
    rows = cross_entropy.row_losses(z, target, rule, kernel=kernel, **given)
    rows.loss.sum().backward()
    assert z.grad is not None
    assert bool(rows.loss.isfinite().all())
    # Relative to the row's own loss, however small: log p of row 4 is -6e-9, where 1 - p in float32 is 0.
    _close(rows.loss, truth.loss, 4e-6, truth.loss.abs())
    _close(z.grad, gradient, 1e-5, gradient.abs().amax(1, keepdim=True).expand_as(gradient))
    if smoothing == 0.0:
        _close(rows.log_prob, truth.log_prob, 4e-6, truth.log_prob.abs())


@pytest.mark.parametrize("falling", [False, True])
def test_kernels_row_maximum_moves_from_block_to_block(where: tuple[Any, str], falling: bool) -> None:
    """A ramp over three blocks of columns: what was summed under an earlier maximum must be scaled down."""
    kernel, device = where
    ramp = torch.linspace(-3, 3, 9001, device=device)
    logits = torch.stack([ramp, 5 * ramp]).flip(1) if falling else torch.stack([ramp, 5 * ramp])
    target = torch.tensor([17, 8999], device=device)
    truth, gradient = _truth(logits, target, make_rule(), torch.ones(2, device=device), {})
    z = logits.clone().requires_grad_()
    rows = cross_entropy.row_losses(z, target, make_rule(), kernel=kernel)
    rows.loss.sum().backward()
    assert z.grad is not None
    _close(rows.loss, truth.loss, 2e-6, truth.loss.abs())
    _close(rows.lse, truth.lse, 2e-6, truth.lse.abs())
    _close(z.grad, gradient, 1e-5, gradient.abs())


def test_kernels_dimp_stays_finite_at_nll_95(where: tuple[Any, str]) -> None:
    """The published code divides probabilities: exp(-95) is 0 in float32, and its weight infinite."""
    kernel, device = where
    logits = torch.tensor([[0.0, 95.0], [0.0, 2e4], [0.0, 40.0]], device=device, requires_grad=True)
    target = torch.zeros(3, dtype=torch.int64, device=device)
    log_quality = torch.full((3,), -0.5, device=device)
    published = log_quality.exp() / logits.detach().softmax(1)[:, 0]
    assert bool(published.isinf().any()), "if this no longer overflows, the test shows nothing"
    for clip, expected in (
        ((0.1, 10.0), [10.0, 10.0, 10.0]),
        (None, [torch.e**64, torch.e**64, torch.e**39.5]),
    ):
        logits.grad = None
        rule = make_rule("dimp", weight_clip=clip)
        rows = cross_entropy.row_losses(logits, target, rule, kernel=kernel, log_quality=log_quality)
        rows.loss.mean().backward()
        assert logits.grad is not None
        assert bool(rows.loss.isfinite().all())
        assert bool(logits.grad.isfinite().all())
        assert rows.weight.tolist() == pytest.approx(expected, rel=1e-4)
        assert rows.clipped.tolist() == ([1, 1, 1] if clip else [1, 1, 0])


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_kernels_write_every_output(
    where: tuple[Any, str], poison: float, monkeypatch: pytest.MonkeyPatch, rows_for: RowsFor, weights_for: WeightsFor
) -> None:
    """Fresh memory is filled with NaN first: a place that is never written would show."""
    kernel, device = where
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = plain(*args, **kwargs)
        return made.fill_(poison) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(torch, "empty", poisoned)
    rule = make_rule("imp", label_smoothing=0.1)
    for n, v in [(5, 3), (130, 16), (3, 4099)]:
        logits, target, upstream = rows_for(n, v, device)
        given = weights_for(n, "imp", device)
        z = logits.clone().requires_grad_()
        rows = cross_entropy.row_losses(z, target, rule, kernel=kernel, **given)
        rows.loss.backward(upstream)
        truth, gradient = _truth(logits, target, rule, upstream, given)
        assert z.grad is not None
        for got, want in ((rows.loss, truth.loss), (rows.weight, truth.weight), (rows.lse, truth.lse)):
            assert torch.allclose(got.double(), want, rtol=1e-4, atol=1e-4)
        assert torch.equal(rows.clipped, truth.clipped)
        assert torch.allclose(z.grad.double(), gradient, rtol=1e-3, atol=1e-3)


def test_kernels_bad_target_is_never_silent(where: tuple[Any, str]) -> None:
    kernel, device = where
    logits, target = torch.zeros(3, 4, device=device), torch.tensor([1, 4, -7], device=device)
    rows = cross_entropy.row_losses(logits, target, make_rule(), kernel=kernel)
    assert rows.loss.isnan().tolist() == [False, True, True]


def test_kernels_nan_weight_is_never_silent(where: tuple[Any, str]) -> None:
    kernel, device = where
    logits = torch.zeros(2, 4, device=device)
    target = torch.tensor([1, 2], device=device)
    log_quality = torch.tensor([float("nan"), -1.0], device=device)
    rule = make_rule("dimp", weight_clip=(0.1, 10))
    rows = cross_entropy.row_losses(logits, target, rule, kernel=kernel, log_quality=log_quality)
    assert rows.loss.isnan().tolist() == [True, False]


def test_kernels_results_repeat_bit_for_bit(where: tuple[Any, str], rows_for: RowsFor, weights_for: WeightsFor) -> None:
    kernel, device = where
    logits, target, upstream = rows_for(33, 1003, device)
    given = weights_for(33, "imp", device)
    seen = []
    for _ in range(2):
        z = logits.clone().requires_grad_()
        rows = cross_entropy.row_losses(z, target, make_rule("imp"), kernel=kernel, **given)
        rows.loss.backward(upstream)
        seen.append((rows.loss.detach(), z.grad))
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] is not None
    assert torch.equal(seen[0][1], seen[1][1])
