from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from obverse.engine.losses import SequenceWeightedCrossEntropy


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Five sequences of up to 7 tokens over 13 classes; the fourth has no token that counts."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, 7, 13, generator=rng, dtype=torch.float64)
    target = torch.randint(0, 13, (5, 7), generator=rng)
    for row, length in enumerate((7, 3, 1, 0, 5)):
        target[row, length:] = -100
    target[4, 0] = -100  # a hole inside a sequence
    q, d = (-3 * torch.rand(5, generator=rng, dtype=torch.float64) for _ in range(2))
    return logits, target, q, d


def _by_loops(logits: Tensor, target: Tensor, log_prob: str, smoothing: float) -> tuple[list[Tensor], list[Tensor]]:
    """Per sequence, one token after another: log p and the smoothed loss, mean or sum."""
    log_probs, losses = [], []
    for z, y in zip(logits, target, strict=True):
        terms, smooth = [], []
        for t in range(len(y)):
            if y[t] == -100:
                continue
            log_p = z[t] - z[t].logsumexp(0)
            terms.append(log_p[y[t]])
            smooth.append(-(1 - smoothing) * log_p[y[t]] - smoothing * log_p.mean())
        zero = (z * 0).sum()
        over = max(1, len(terms)) if log_prob == "mean" else 1
        log_probs.append(sum(terms, zero) / over)
        losses.append(sum(smooth, zero) / over)
    return log_probs, losses


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("log_prob", ["mean", "sum"])
@pytest.mark.parametrize("scheme", ["plain", "sample_weight", "imp", "dimp"])
def test_losses_sequence_is_its_equation(scheme: Any, log_prob: Any, smoothing: float) -> None:
    logits, target, q, d = _batch()
    s = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.0], dtype=torch.float64)
    given = {
        "plain": {},
        "sample_weight": {"sample_weight": s},
        "imp": {"sample_weight": s, "log_quality": q, "log_diversity": d},
        "dimp": {"log_quality": q},
    }[scheme]
    z = logits.clone().requires_grad_()
    log_probs, losses = _by_loops(z, target, log_prob, smoothing)
    expected = []
    for b in range(5):
        w = torch.ones((), dtype=torch.float64)
        if scheme == "imp":
            w = ((q[b] - d[b]) * 0.8).exp().clamp(0.2, 4)
        if scheme == "dimp":
            w = ((q[b] - log_probs[b].detach()) * 0.8).exp().clamp(0.2, 4)
        if "sample_weight" in given:
            w = w * s[b]
        expected.append(w * losses[b])
    wanted = sum(expected, torch.zeros((), dtype=torch.float64)) / 4  # four sequences count
    wanted.backward()
    ours = logits.clone().requires_grad_()
    loss_of = SequenceWeightedCrossEntropy(
        scheme, log_prob=log_prob, gamma=0.8, weight_clip=(0.2, 4.0), label_smoothing=smoothing
    )
    loss, seen = loss_of.with_diagnostics(ours, target, **given)
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-12)
    assert ours.grad is not None
    assert z.grad is not None
    torch.testing.assert_close(ours.grad, z.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(seen.log_prob, torch.stack(log_probs).detach(), rtol=1e-10, atol=1e-12)
    assert seen.num_tokens.tolist() == [7, 3, 1, 0, 4]
    assert seen.weight[3].item() == 0.0


def test_losses_sequence_token_mean_is_the_common_trainers_loss() -> None:
    logits, target, _, _ = _batch()
    loss = SequenceWeightedCrossEntropy(reduction="token_mean")(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits.view(-1, 13), target.view(-1)))


def test_losses_sequence_token_mean_denominators_by_hand() -> None:
    """Equal logits over two classes; lengths 1 and 3, weights 2 and 1: sum of w l is 5 log 2, n = 2, W = 3."""
    logits = torch.zeros(2, 3, 2)
    target = torch.tensor([[0, -100, -100], [0, 1, 1]])
    weight = torch.tensor([2.0, 1.0])
    for normalisation, factor in (("none", 5 / 4), ("batch", 5 / 4 * 2 / 3), ("self", 5 / 5)):
        loss_of = SequenceWeightedCrossEntropy(
            "sample_weight",
            reduction="token_mean",
            normalisation=normalisation,  # type: ignore[arg-type]
        )
        loss = loss_of(logits, target, sample_weight=weight)
        assert loss.item() == pytest.approx(factor * math.log(2)), normalisation
    rows = SequenceWeightedCrossEntropy("sample_weight", reduction="none", log_prob="sum")
    got = rows(logits, target, sample_weight=weight)
    assert got.tolist() == pytest.approx([2 * math.log(2), 3 * math.log(2)])


def test_losses_sequence_padding_changes_nothing() -> None:
    logits, target, q, _ = _batch()
    loss_of = SequenceWeightedCrossEntropy("dimp")
    short = loss_of(logits, target, log_quality=q)
    padded = torch.cat([logits, torch.full((5, 4, 13), float("nan"), dtype=torch.float64)], dim=1)
    ignored = torch.cat([target, torch.full((5, 4), -100)], dim=1)
    torch.testing.assert_close(loss_of(padded, ignored, log_quality=q), short)


@pytest.mark.parametrize("reduction", ["mean", "sum", "token_mean"])
@pytest.mark.parametrize("normalisation", ["none", "batch", "self"])
def test_losses_sequence_nothing_counted_is_zero(reduction: Any, normalisation: Any) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    target = torch.full((2, 3), -100)
    loss_of = SequenceWeightedCrossEntropy("dimp", reduction=reduction, normalisation=normalisation)
    loss, seen = loss_of.with_diagnostics(logits, target, log_quality=torch.zeros(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert gradient.abs().max().item() == 0.0
    assert seen.effective_sample_size().item() == 0.0
    assert seen.clipped_share().item() == 0.0


def test_losses_sequence_weight_of_a_long_text_does_not_explode() -> None:
    """300 tokens at nll 2 each: summed, q/p would be e^600; length-normalised it is e^2 over the checker's."""
    logits = torch.zeros(1, 300, 8)
    logits[..., 0] = 2.0
    target = torch.ones(1, 300, dtype=torch.int64)
    loss_of = SequenceWeightedCrossEntropy("dimp", weight_clip=None)
    loss, seen = loss_of.with_diagnostics(logits, target, log_quality=torch.tensor([-1.0]))
    nll = math.log(math.exp(2) + 7)
    assert seen.weight.item() == pytest.approx(math.exp(nll - 1), rel=1e-4)
    assert loss.item() == pytest.approx(seen.weight.item() * nll, rel=1e-4)
    summed = SequenceWeightedCrossEntropy("dimp", weight_clip=None, log_prob="sum")
    loss, seen = summed.with_diagnostics(logits, target, log_quality=torch.tensor([-1.0]))
    assert math.isfinite(loss.item())
    assert seen.clipped.tolist() == [1]


def test_losses_sequence_bad_input_is_said() -> None:
    logits, target, q, d = _batch()
    for change, message in (
        ({"scheme": "focal"}, "field 'scheme': expected one of plain, sample_weight, imp, dimp, saw 'focal'"),
        ({"log_prob": "max"}, "field 'log_prob'"),
        ({"reduction": "avg"}, "field 'reduction'"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceWeightedCrossEntropy(**change)  # type: ignore[arg-type]
    loss_of = SequenceWeightedCrossEntropy("imp")
    for given, message in (
        ({"log_quality": q}, "log_diversity: scheme 'imp' needs it"),
        ({"log_quality": q, "log_diversity": d[:2]}, r"field 'log_diversity': expected a float tensor \[5\]"),
        ({"log_quality": q, "log_diversity": d / 0}, "row 0, field 'log_diversity': expected a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_of(logits, target, **given)
    with pytest.raises(ValueError, match=r"token logits \[B, T, V\]"):
        SequenceWeightedCrossEntropy()(logits[0], target[0])
    with pytest.raises(ValueError, match="field 'target': expected a class from 0 to 12"):
        SequenceWeightedCrossEntropy()(logits, target + 5)
