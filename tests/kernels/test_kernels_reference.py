"""The reference itself: against torch, the papers' formulas, numbers worked by hand, and numeric derivatives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from obverse.kernels import cross_entropy, reference
from obverse.kernels.launch import choose
from obverse.kernels.weight_rule import Scheme, make_rule


def _random(n: int = 6, v: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, v, generator=rng, dtype=torch.float64)
    target = torch.randint(0, v, (n,), generator=rng)
    target[2] = -100
    q, d = (-3 * torch.rand(n, generator=rng, dtype=torch.float64) for _ in range(2))
    return logits, target, q, d


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_kernels_plain_is_torch_cross_entropy(smoothing: float, reduction: Any) -> None:
    logits, target, _, _ = _random()
    rows = reference.row_losses(logits, target, make_rule(label_smoothing=smoothing))
    ours = reference.reduce_rows(rows.loss, rows.weight, rows.counted, normalisation="none", reduction=reduction)
    theirs = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_kernels_class_weights_and_soft_labels_are_torchs(soft: bool, smoothing: float) -> None:
    logits, target, _, _ = _random()
    class_weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    y = logits.flip(1).softmax(1) if soft else target
    rows = reference.row_losses(logits, y, make_rule(label_smoothing=smoothing), class_weight=class_weight)
    theirs = F.cross_entropy(logits, y, weight=class_weight, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(rows.loss, theirs, rtol=1e-12, atol=1e-12)
    if not soft and smoothing == 0.0:  # torch divides its weighted mean by the sum of the targets' class weights
        mean = reference.reduce_rows(rows.loss, rows.weight, rows.counted, normalisation="self", reduction="mean")
        torch.testing.assert_close(mean, F.cross_entropy(logits, y, weight=class_weight), rtol=1e-12, atol=1e-12)


def test_kernels_z_loss_is_weighted_like_the_rest() -> None:
    logits, target, log_q, log_d = _random()
    given = {"log_quality": log_q, "log_diversity": log_d}
    without = reference.row_losses(logits, target, make_rule("imp"), **given)
    rows = reference.row_losses(logits, target, make_rule("imp", z_loss=0.25), **given)
    expected = without.loss + torch.where(target == -100, 0.0, without.weight * 0.25 * logits.logsumexp(1).square())
    torch.testing.assert_close(rows.loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["reference", "cpp"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_kernels_unclipped_schemes_are_the_published_formulas(kernel: Any, gamma: float) -> None:
    """IMP: -(q/d)^g log p; DIMP: -(q/p)^g log p; focal (detached): -(1-p)^g log p; each averaged (2410.21526)."""
    logits, target, log_q, log_d = _random()
    target[2] = 0
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    q, d = log_q.exp(), log_d.exp()
    published = {
        "imp": -((q / d) ** gamma) * p.log(),
        "dimp": -((q / p) ** gamma) * p.log(),
        "focal": -((1 - p) ** gamma) * p.log(),
    }
    inputs = {"imp": {"log_quality": log_q, "log_diversity": log_d}, "dimp": {"log_quality": log_q}, "focal": {}}
    names: list[Scheme] = ["imp", "dimp", "focal"]
    for scheme in names:
        rule = make_rule(scheme, gamma=gamma)
        z = logits if kernel == "reference" else logits.float()
        rows = cross_entropy.row_losses(z, target, rule, kernel=kernel, **inputs[scheme])
        near = 1e-9 if kernel == "reference" else 5e-6
        torch.testing.assert_close(rows.loss.double(), published[scheme], rtol=near, atol=near / 100)


def test_kernels_dimp_gradient_is_that_of_the_exponential_loss() -> None:
    """With the gradient stopped at the weight, d/dz of -(q/p) log p is d/dz of q/p (facts: weighting, 1.1)."""
    logits, target, log_q, _ = _random(seed=3)
    target[2] = 1
    z = logits.clone().requires_grad_()
    cross_entropy.row_losses(z, target, make_rule("dimp"), log_quality=log_q).loss.sum().backward()
    z2 = logits.clone().requires_grad_()
    (log_q.exp() / z2.softmax(1).gather(1, target[:, None])[:, 0]).sum().backward()
    assert z.grad is not None
    assert z2.grad is not None
    torch.testing.assert_close(z.grad, z2.grad, rtol=1e-9, atol=1e-12)


def test_kernels_clip_by_hand() -> None:
    """Two classes, equal logits: p = 1/2. Ratios q/d of 4, 1 and 1/8 under a clip of (1/2, 2)."""
    logits = torch.zeros(3, 2, dtype=torch.float64)
    target = torch.zeros(3, dtype=torch.int64)
    log_q = torch.tensor([0.0, 0.0, math.log(1 / 8)], dtype=torch.float64)
    log_d = torch.tensor([math.log(1 / 4), 0.0, 0.0], dtype=torch.float64)
    rule = make_rule("imp", weight_clip=(0.5, 2.0))
    rows = reference.row_losses(logits, target, rule, log_quality=log_q, log_diversity=log_d)
    assert rows.weight.tolist() == pytest.approx([2.0, 1.0, 0.5])
    assert rows.clipped.tolist() == [1, 0, -1]
    assert rows.clipped_share().item() == pytest.approx(2 / 3)
    assert rows.loss.tolist() == pytest.approx([2 * math.log(2), math.log(2), 0.5 * math.log(2)])
    # (2 + 1 + 1/2)^2 / (4 + 1 + 1/4)
    assert rows.effective_sample_size().item() == pytest.approx(12.25 / 5.25)


def test_kernels_reduction_table_by_hand() -> None:
    """Losses 1 and 2, weights 1 and 3, one ignored row: n = 2, W = 4, sum(w l) = 7."""
    loss = torch.tensor([1.0, 0.0, 6.0])
    weight = torch.tensor([1.0, 0.0, 3.0])
    counted = torch.tensor([True, False, True])
    expected = {
        ("none", "sum"): 7.0,
        ("none", "mean"): 3.5,
        ("batch", "sum"): 3.5,
        ("batch", "mean"): 1.75,
        ("self", "sum"): 1.75,
        ("self", "mean"): 1.75,
    }
    for (normalisation, reduction), value in expected.items():
        got = reference.reduce_rows(
            loss,
            weight,
            counted,
            normalisation=normalisation,  # type: ignore[arg-type]
            reduction=reduction,  # type: ignore[arg-type]
        )
        assert got.item() == pytest.approx(value), (normalisation, reduction)
    rows = reference.reduce_rows(loss, weight, counted, normalisation="batch", reduction="none")
    assert rows.tolist() == pytest.approx([0.5, 0.0, 3.0])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("scheme", ["plain", "sample_weight", "imp", "focal"])
def test_kernels_reference_is_twice_differentiable(scheme: Scheme, soft: bool) -> None:
    if soft and scheme == "focal":
        pytest.skip("focal takes class indices only")
    logits, target, log_q, log_d = _random(n=3, v=4)
    target = logits.flip(0).softmax(1) if soft else target
    class_weight = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    rule = make_rule(scheme, gamma=1.7, weight_clip=(1e-3, 1e3), label_smoothing=0.1, z_loss=0.01)
    given: dict[str, Tensor] = {}
    if scheme == "sample_weight":
        given["sample_weight"] = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    if scheme == "imp":
        given = {"log_quality": log_q.requires_grad_(), "log_diversity": log_d.requires_grad_()}
    names = list(given)

    def loss(z: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return reference.row_losses(z, target, rule, **named, class_weight=class_weight).loss

    inputs = (logits.requires_grad_(), *given.values())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_kernels_weights_that_learn_go_to_the_reference() -> None:
    logits, target, _, _ = _random()
    weight = torch.ones(6, dtype=torch.float64, requires_grad=True)
    rule = make_rule("sample_weight")
    rows = cross_entropy.row_losses(logits.requires_grad_(), target, rule, sample_weight=weight)
    (gradient,) = torch.autograd.grad(rows.loss.sum(), weight)
    expected = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(gradient, expected.detach())
    with pytest.raises(ValueError, match="no gradients for weights"):
        cross_entropy.row_losses(logits.float(), target, rule, sample_weight=weight.float(), kernel="cpp")


@pytest.mark.parametrize("scheme", ["plain", "dimp", "focal"])
def test_kernels_second_derivative_of_cpp_is_the_references(scheme: Scheme) -> None:
    logits, target, log_q, _ = _random()
    given = {"log_quality": log_q} if scheme == "dimp" else {}
    seen = []
    kernels: tuple[tuple[Any, torch.dtype], ...] = (("cpp", torch.float32), ("reference", torch.float64))
    for kernel, dtype in kernels:
        z = logits.to(dtype).requires_grad_()
        loss = cross_entropy.row_losses(z, target, make_rule(scheme, gamma=1.5), kernel=kernel, **given).loss
        (gradient,) = torch.autograd.grad(loss.square().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), z)
        seen.append(second)
    assert seen[0].abs().max() > 0.1
    torch.testing.assert_close(seen[0].double(), seen[1], rtol=1e-4, atol=1e-5)


def test_kernels_saved_numbers_survive_changes_in_place() -> None:
    logits, target, _, _ = _random()
    z = logits.float().requires_grad_()
    rows = cross_entropy.row_losses(z, target, make_rule(), kernel="cpp")
    rows.loss.mul_(3.0).sum().backward()
    z2 = logits.float().requires_grad_()
    (3 * F.cross_entropy(z2, target, reduction="sum")).backward()
    assert z.grad is not None
    assert z2.grad is not None
    torch.testing.assert_close(z.grad, z2.grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "imd"}, "scheme: expected one of plain, sample_weight, imp, dimp, focal, saw 'imd'"),
        ({"gamma": -1.0}, "gamma: expected a finite number >= 0, saw -1.0"),
        ({"gamma": float("nan")}, "gamma"),
        ({"weight_clip": (0.0, 1.0)}, "0 < low <= high < inf"),
        ({"weight_clip": (2.0, 1.0)}, "saw \\(2.0, 1.0\\)"),
        ({"label_smoothing": 1.5}, "label_smoothing: expected a number from 0 to 1"),
        ({"z_loss": -0.1}, "z_loss: expected a finite number >= 0, saw -0.1"),
    ],
)
def test_kernels_bad_rules_say_what_was_seen(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rule(**settings)


def test_kernels_bad_inputs_say_what_was_seen() -> None:
    logits, target, log_q, log_d = _random()
    call = cross_entropy.row_losses
    for bad, message in (
        (lambda: call(logits, target[:3], make_rule()), r"target: expected int64 \[6\], saw torch.int64 \[3\]"),
        (lambda: call(logits.long(), target, make_rule()), "logits: expected a float tensor"),
        (lambda: call(logits, target.int(), make_rule()), "target: expected int64"),
        (lambda: call(logits, target, make_rule("imp"), log_quality=log_q), "log_diversity: scheme 'imp' needs"),
        (lambda: call(logits, target, make_rule(), log_quality=log_q), "'plain' has no use for it"),
        (
            lambda: call(logits, target, make_rule("dimp"), log_quality=log_q, log_diversity=log_d),
            "log_diversity: scheme 'dimp' has no use",
        ),
        (lambda: call(logits, target, make_rule("dimp"), log_quality=log_q[:2]), r"log_quality: expected float \[6\]"),
        (lambda: call(logits, target, make_rule(), kernel="fast"), "kernel: expected one of auto, triton"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_kernels_dispatch_is_as_documented() -> None:
    cpu = torch.zeros(1, 2)
    assert choose("auto", cpu, weight_gradients=False) == "cpp"
    assert choose("auto", cpu.double(), weight_gradients=False) == "reference"
    assert choose("cpp-avx2", cpu, weight_gradients=False) == "cpp-avx2"
    assert choose("auto", cpu, weight_gradients=True) == "reference"
    assert choose("reference", cpu, weight_gradients=False) == "reference"
    with pytest.raises(ValueError, match="float64"):
        choose("triton", cpu.double(), weight_gradients=False)


@pytest.mark.parametrize("shape", [(5000, 7), (70, 9000), (9, 70001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_cpp_is_the_same_bits_on_any_number_of_threads(shape: tuple[int, int], dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(shape, generator=rng)).to(dtype)
    target = torch.randint(0, shape[1], shape[:1], generator=rng)
    rule = make_rule("dimp", weight_clip=(0.1, 10), label_smoothing=0.1)
    log_quality = -torch.rand(shape[0], generator=rng)
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            z = logits.clone().requires_grad_()
            total, rows = cross_entropy.total_loss(z, target, rule, log_quality=log_quality, kernel="cpp")
            total.backward()
            assert z.grad is not None
            seen.append((total.detach(), rows.loss, z.grad))
            with torch.inference_mode():
                again = cross_entropy.row_losses(logits, target, rule, log_quality=log_quality, kernel="cpp")
            assert torch.equal(again.loss, seen[0][1])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, seen[0], strict=True))
