from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from obverse.engine.errors import InputError
from obverse.engine.losses import (
    WeightedCrossEntropy,
    weighted_cross_entropy,
    weighted_cross_entropy_with_diagnostics,
)


def _batch(*shape: int, v: int = 11, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randint(0, v, shape, generator=rng)
    target.view(-1)[1::4] = -100
    return torch.randn(*shape, v, generator=rng), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_default_is_torch_cross_entropy(dtype: torch.dtype, smoothing: float) -> None:
    logits, target = _batch(3, 7)
    logits = logits.to(dtype).requires_grad_()
    loss = weighted_cross_entropy(logits, target, label_smoothing=smoothing)
    assert loss.dtype == torch.float32
    loss.backward()
    theirs = logits.detach().float().requires_grad_()
    expected = F.cross_entropy(theirs.view(-1, 11), target.view(-1), label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert logits.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(logits.grad, theirs.grad.to(dtype), rtol=2**-7, atol=1e-7)


def test_losses_weights_per_sample_broadcast_over_tokens() -> None:
    logits, target = _batch(4, 5)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    rows = weighted_cross_entropy(logits, target, scheme="sample_weight", sample_weight=weight, reduction="none")
    assert rows.shape == (4, 5)
    expected = F.cross_entropy(logits.view(-1, 11), target.view(-1), reduction="none").view(4, 5)
    torch.testing.assert_close(rows, expected * weight[:, None])
    tokens = weight[:, None].expand(4, 5)
    again = weighted_cross_entropy(logits, target, scheme="sample_weight", sample_weight=tokens, reduction="none")
    torch.testing.assert_close(again, rows)


def test_losses_denominators_by_hand() -> None:
    """Two classes at equal logits: every loss is log 2. Weights 1 and 3 and one ignored row: n = 2, W = 4."""
    logits, target = torch.zeros(3, 2), torch.tensor([0, -100, 1])
    weight = torch.tensor([1.0, 50.0, 3.0])
    expected = {
        ("none", "mean"): 2.0,
        ("none", "sum"): 4.0,
        ("batch", "mean"): 1.0,
        ("batch", "sum"): 2.0,
        ("self", "mean"): 1.0,
        ("self", "sum"): 1.0,
    }
    for (normalisation, reduction), factor in expected.items():
        loss = weighted_cross_entropy(
            logits,
            target,
            scheme="sample_weight",
            sample_weight=weight,
            normalisation=normalisation,  # type: ignore[arg-type]
            reduction=reduction,  # type: ignore[arg-type]
        )
        assert loss.item() == pytest.approx(factor * math.log(2)), (normalisation, reduction)


def test_losses_module_is_the_function_with_diagnostics_from_one_pass() -> None:
    logits, target = _batch(9)
    log_q, log_d = -torch.rand(9) * 6, -torch.rand(9) * 6
    module = WeightedCrossEntropy("imp", gamma=0.7, weight_clip=(0.2, 5.0), normalisation="batch")
    loss, seen = module.with_diagnostics(logits, target, log_quality=log_q, log_diversity=log_d)
    assert torch.equal(module(logits, target, log_quality=log_q, log_diversity=log_d), loss)
    counted = target != -100
    ratio = 0.7 * (log_q - log_d)
    weight = torch.where(counted, ratio.exp().clamp(0.2, 5.0), 0.0)
    torch.testing.assert_close(seen.weight, weight)
    log_prob = logits.log_softmax(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    torch.testing.assert_close(seen.log_prob, torch.where(counted, log_prob, 0.0))
    torch.testing.assert_close(seen.lse[counted], logits.logsumexp(1)[counted])
    torch.testing.assert_close(seen.effective_sample_size(), weight.sum() ** 2 / weight.square().sum())
    outside = ((ratio < math.log(0.2)) | (ratio > math.log(5.0))) & counted
    torch.testing.assert_close(seen.clipped_share(), outside.sum() / counted.sum())
    torch.testing.assert_close(loss, (weight * -log_prob).sum() / weight.sum())
    assert not any(values.requires_grad for values in seen)
    assert "scheme='imp'" in repr(module)
    assert list(module.parameters()) == []


@pytest.mark.parametrize("scheme", ["imp", "dimp"])
def test_losses_all_ignored_gives_zero_and_no_gradient(scheme: Any) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    target = torch.full((3,), -100)
    given = {"log_quality": torch.zeros(3)}
    if scheme == "imp":
        given["log_diversity"] = torch.zeros(3)
    for normalisation in ("none", "batch", "self"):
        loss = weighted_cross_entropy(logits, target, scheme=scheme, normalisation=normalisation, **given)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0.0
        assert gradient.abs().max().item() == 0.0


def test_losses_focal_true_and_detached_differ_only_in_gradient() -> None:
    logits, target = _batch(6, v=4)
    losses, gradients = [], []
    options: tuple[Any, ...] = ("true", "detached")
    for focal_gradient in options:
        z = logits.clone().requires_grad_()
        loss = weighted_cross_entropy(z, target, scheme="focal", gamma=2.0, focal_gradient=focal_gradient)
        loss.backward()
        losses.append(loss.item())
        gradients.append(z.grad)
    p = logits.softmax(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    expected = torch.where(target == -100, 0.0, -((1 - p) ** 2) * p.log()).sum() / (target != -100).sum()
    assert losses[0] == losses[1] == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.allclose(gradients[0], gradients[1])


def test_losses_train_a_model_to_the_good_labels() -> None:
    """Four in ten labels of one half-space are flipped and the quality checker doubts those: both find the rule."""
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(400, 5, generator=rng)
    truth = (x[:, 0] > 0).long()
    flipped = (torch.rand(400, generator=rng) < 0.4) & (x[:, 1] > -0.5)
    label = torch.where(flipped, 1 - truth, truth)
    log_q = torch.where(flipped, math.log(0.05), math.log(0.95))
    log_d = torch.full((400,), math.log(0.6))
    margins = {}
    for scheme, given in (
        ("plain", {}),
        ("imp", {"log_quality": log_q, "log_diversity": log_d}),
        ("dimp", {"log_quality": log_q}),
    ):
        torch.manual_seed(0)
        model = nn.Linear(5, 2)
        loss_of = WeightedCrossEntropy(scheme, normalisation="batch")  # type: ignore[arg-type]
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(120):
            optimiser.zero_grad()
            loss_of(model(x), label, **given).backward()
            optimiser.step()
        log_p = model(x).log_softmax(1).gather(1, truth[:, None])
        margins[scheme] = log_p.mean().item()
    assert margins["imp"] > margins["plain"] + 0.2
    # DIMP lets go of rows once they are learned, so its margins grow less.
    assert margins["dimp"] > margins["plain"] + 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4)}, "field 'logits': expected a float tensor"),
        ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, "field 'logits'"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"field 'target': expected int64 class indices \[4\] or soft"),
        ({"target": torch.tensor([0, 1, 3, 2])}, "row 2, field 'target': expected a class from 0 to 2.*saw 3"),
        ({"target": torch.tensor([0, -1, 2, 2])}, "row 1, field 'target'.*saw -1"),
        ({"log_quality": torch.tensor([0.0, 0.0, float("nan"), 0.0])}, "row 2, field 'log_quality'.*saw nan"),
        ({"log_quality": torch.zeros(2)}, r"field 'log_quality': expected a float tensor \[4\]"),
        ({"log_quality": None}, "log_quality: scheme 'dimp' needs it"),
        ({"log_diversity": torch.zeros(4)}, "log_diversity: scheme 'dimp' has no use for it"),
        ({"scheme": "plain"}, "log_quality: scheme 'plain' has no use for it"),
        ({"gamma": -2.0}, "gamma: expected a finite number >= 0, saw -2.0"),
        ({"weight_clip": (3.0, 1.0)}, "weight_clip"),
        ({"focal_gradient": "half"}, "field 'focal_gradient': expected one of true, detached, saw 'half'"),
        ({"normalisation": "mean"}, "field 'normalisation': expected one of none, batch, self, saw 'mean'"),
        ({"reduction": "avg"}, "field 'reduction': expected one of none, sum, mean, saw 'avg'"),
        ({"kernel": "cuda"}, "field 'kernel': expected one of auto"),
        ({"level": "word"}, "field 'level': expected one of token, sequence, sequence_sum, saw 'word'"),
        ({"level": "sequence"}, r"field 'level': expected targets \[B, T\], or a sample_id"),
        ({"z_loss": -1.0}, "z_loss: expected a finite number >= 0, saw -1.0"),
        ({"class_weight": torch.ones(4)}, r"class_weight: expected float \[3\], saw torch.float32 \[4\]"),
        ({"class_weight": torch.tensor([1.0, float("inf"), 1.0])}, "row 1, field 'class_weight'.*saw inf"),
        ({"num_items": 3, "reduction": "sum"}, "field 'num_items': expected reduction mean"),
        ({"inplace": True, "reduction": "none"}, "field 'inplace': expected reduction sum or mean"),
        ({"sample_id": torch.zeros(4, dtype=torch.int64), "log_quality": torch.zeros(2, 2)}, "one a sample"),
        ({"target": torch.full((4, 3), float("nan"))}, "row 0, field 'target'.*saw nan"),
    ],
)
def test_losses_bad_input_is_said(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "logits": torch.zeros(4, 3),
        "target": torch.tensor([0, 1, -100, 2]),
        "scheme": "dimp",
        "log_quality": torch.zeros(4),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        weighted_cross_entropy(**call)


def test_losses_check_can_be_switched_off() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    log_quality = torch.tensor([float("nan"), 0.0])
    with pytest.raises(InputError, match="row 0, field 'log_quality'"):
        weighted_cross_entropy(logits, target, scheme="dimp", log_quality=log_quality)
    loss = weighted_cross_entropy(logits, target, scheme="dimp", log_quality=log_quality, check=False)
    assert loss.isnan()


def test_losses_work_without_gradients_and_under_autocast() -> None:
    logits, target = _batch(6)
    expected = F.cross_entropy(logits, target)
    with torch.inference_mode():
        torch.testing.assert_close(weighted_cross_entropy(logits, target), expected)
    model = nn.Linear(11, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(logits)
        loss, seen = weighted_cross_entropy_with_diagnostics(out, target)
    assert out.dtype == torch.bfloat16
    assert loss.dtype == seen.lse.dtype == torch.float32
    loss.backward()
    assert model.weight.grad is not None
    assert bool(model.weight.grad.isfinite().all())
