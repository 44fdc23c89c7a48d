"""Weights a sample: sample ids, sequence level, counts over micro-batches; over logits and over a head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from obverse.engine.losses import (
    LinearWeightedCrossEntropy,
    WeightedCrossEntropy,
    linear_weighted_cross_entropy,
    linear_weighted_cross_entropy_with_diagnostics,
    weighted_cross_entropy,
    weighted_cross_entropy_with_diagnostics,
)

B, T, V, D = 4, 6, 13, 5


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden [B, T, D], a head [V, D] and targets [B, T], of which some are ignored and one sequence wholly."""
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(0, V, (B, T), generator=rng)
    target[0, 4:] = -100
    target[2] = -100
    return torch.randn(B, T, D, generator=rng), torch.randn(V, D, generator=rng), target


def sequence_truth(
    hidden: Tensor, head: Tensor, target: Tensor, log_quality: Tensor, sample_weight: Tensor, *, total: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over counted tokens of w_b l_bt with w_b as `weighted_cross_entropy` defines it, in float64 by hand."""
    x, w = (t.double().requires_grad_() for t in (hidden, head))
    log_probs = (x @ w.T).log_softmax(-1)
    picked = log_probs.gather(2, target.clamp_min(0)[..., None])[..., 0]
    counted = target != -100
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(len(target)):
        tokens = picked[b][counted[b]]
        if not len(tokens):
            continue
        log_p = tokens.detach().sum() if total else tokens.detach().mean()
        weight = sample_weight[b].double() * (log_quality[b].double() - log_p).exp().clamp(0.1, 10.0)
        loss = loss - weight * tokens.sum()
    loss = loss / counted.sum()
    loss.backward()
    assert x.grad is not None
    assert w.grad is not None
    return loss.detach(), x.grad, w.grad


@pytest.mark.parametrize("level", ["sequence", "sequence_sum"])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_losses_dimp_of_whole_sequences(level: Any, linear: bool, packed: bool, batch: tuple[Tensor, ...]) -> None:
    hidden, head, target = batch
    log_quality = -torch.tensor([0.5, 2.0, 1.0, 3.0]) * (4 if level == "sequence_sum" else 1)
    sample_weight = torch.tensor([1.0, 0.5, 2.0, -1.0])
    truth, d_hidden, d_head = sequence_truth(
        hidden, head, target, log_quality, sample_weight, total=level == "sequence_sum"
    )
    given: dict[str, Any] = {"log_quality": log_quality, "sample_weight": sample_weight}
    order = torch.arange(B * T)
    if packed:  # the same tokens as one long row, out of order
        order = torch.randperm(B * T, generator=torch.Generator().manual_seed(2))
        given["sample_id"] = torch.arange(B).repeat_interleave(T)[order]
    shape = (B * T,) if packed else (B, T)
    x, w = (t.clone().requires_grad_() for t in (hidden, head))
    flat, y = x.reshape(-1, D)[order].reshape(*shape, D), target.reshape(-1)[order].reshape(shape)
    settings: dict[str, Any] = {"scheme": "dimp", "level": level, **given}
    if linear:
        loss, seen = linear_weighted_cross_entropy_with_diagnostics(flat, w, y, **settings)
    else:
        loss, seen = weighted_cross_entropy_with_diagnostics(flat @ w.T, y, **settings)
    loss.backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-7)
    assert x.grad is not None
    assert w.grad is not None
    torch.testing.assert_close(x.grad.double(), d_hidden, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w.grad.double(), d_head, rtol=1e-4, atol=1e-6)
    assert bool((seen.clipped != 0).any()), "a clip that clips nothing shows nothing"
    if not packed:
        assert bool(seen.weight[target != -100].unique().numel() <= B)


def test_losses_sample_ids_hand_each_row_its_samples_weight(batch: tuple[Tensor, ...]) -> None:
    hidden, head, target = batch
    logits = hidden @ head.T
    weight = torch.tensor([0.5, 2.0, 3.0, -1.0])
    ids = torch.arange(B)[:, None].expand(B, T)
    a = weighted_cross_entropy(logits, target, scheme="sample_weight", sample_weight=weight)
    b = weighted_cross_entropy(logits, target, scheme="sample_weight", sample_weight=weight, sample_id=ids)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scheme", ["plain", "imp", "dimp"])
@pytest.mark.parametrize("linear", [False, True])
def test_losses_micro_batches_add_up_to_the_whole(scheme: Any, linear: bool, batch: tuple[Tensor, ...]) -> None:
    """With num_items the sum over micro-batches of ragged counts is the mean over the whole batch."""
    hidden, head, target = batch
    q, d = -torch.rand(B), -torch.rand(B)
    given = {"plain": {}, "imp": {"log_quality": q, "log_diversity": d}, "dimp": {"log_quality": q}}[scheme]

    def loss(part: slice, num_items: Any) -> Tensor:
        some: dict[str, Any] = {name: values[part] for name, values in given.items()}
        some |= {"scheme": scheme, "num_items": num_items}
        if linear:
            return linear_weighted_cross_entropy(hidden[part], head, target[part], **some)
        return weighted_cross_entropy(hidden[part] @ head.T, target[part], **some)

    count = (target != -100).sum()
    pieces = [loss(slice(0, 1), count), loss(slice(1, 3), int(count)), loss(slice(3, 4), count)]
    torch.testing.assert_close(sum(pieces), loss(slice(None), None), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("normalisation", ["none", "batch", "self"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("scheme", ["plain", "imp", "dimp", "focal"])
def test_losses_over_a_head_are_those_over_its_logits(
    scheme: Any, reduction: Any, normalisation: Any, batch: tuple[Tensor, ...]
) -> None:
    hidden, head, target = batch
    bias = torch.linspace(-1, 1, V)
    q, d = -torch.rand(B, T), -torch.rand(B, T)
    given: dict[str, Any] = {"imp": {"log_quality": q, "log_diversity": d}, "dimp": {"log_quality": q}}.get(scheme, {})
    settings: dict[str, Any] = {
        "reduction": reduction,
        "normalisation": normalisation,
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "class_weight": torch.linspace(0.2, 2, V),
        "scheme": scheme,
        **given,
    }
    seen: list[list[Tensor | None]] = []
    for linear in (True, False):
        leaves = [t.clone().requires_grad_() for t in (hidden, head, bias)]
        x, w, b = leaves
        if linear:
            loss = linear_weighted_cross_entropy(x, w, target, bias=b, **settings)
        else:
            loss = weighted_cross_entropy(F.linear(x, w, b).double(), target, kernel="reference", **settings)
        (loss * torch.linspace(1, 2, loss.numel()).reshape(loss.shape)).sum().backward()
        seen.append([loss.detach().double(), *(leaf.grad for leaf in leaves)])
    for ours, truth in zip(*seen, strict=True):
        torch.testing.assert_close(ours, truth, rtol=2e-5, atol=1e-5)


def test_losses_class_weights_normalise_as_torchs(batch: tuple[Tensor, ...]) -> None:
    hidden, head, target = batch
    logits, y = (hidden @ head.T).reshape(-1, V), target.reshape(-1)
    c = torch.linspace(0.0, 2.0, V)
    ours = weighted_cross_entropy(logits, y, class_weight=c, normalisation="self")
    torch.testing.assert_close(ours, F.cross_entropy(logits, y, weight=c))


def test_losses_in_place_is_the_same_loss_and_gradient(batch: tuple[Tensor, ...]) -> None:
    hidden, head, target = batch
    seen = []
    for inplace in (False, True):
        x = hidden.clone().requires_grad_()
        loss = WeightedCrossEntropy("dimp", inplace=inplace)(x @ head.T, target, log_quality=-torch.ones(B))
        (0.5 * loss).backward()
        assert x.grad is not None
        seen.append((loss.detach(), x.grad))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_losses_linear_module_says_its_settings(batch: tuple[Tensor, ...]) -> None:
    hidden, head, target = batch
    module = LinearWeightedCrossEntropy("dimp", gamma=0.5, level="sequence")
    loss = module(hidden, head, target, log_quality=-torch.ones(B))
    _, seen = module.with_diagnostics(hidden, head, target, log_quality=-torch.ones(B))
    assert loss.isfinite()
    assert seen.weight.shape == (B, T)
    assert "level='sequence'" in repr(module)
    with pytest.raises(ValueError, match="gamma"):
        LinearWeightedCrossEntropy("dimp", gamma=-1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(4)}, "field 'hidden': expected a float tensor"),
        ({"head_weight": torch.zeros(3, 6)}, r"field 'head_weight': expected a float tensor \[V, 5\], saw"),
        ({"head_weight": torch.zeros(3, 5, dtype=torch.bfloat16)}, "head_weight: expected torch.float32"),
        ({"bias": torch.zeros(2)}, r"field 'bias': expected a float tensor \[3\]"),
        ({"target": torch.tensor([0, 1, 3, 2])}, "row 2, field 'target': expected a class from 0 to 2.*saw 3"),
        ({"target": torch.zeros(4, 3)}, r"field 'target': expected int64 class indices \[4\]"),
        ({"log_quality": torch.tensor([0.0, float("inf"), 0.0, 0.0])}, "row 1, field 'log_quality'.*saw inf"),
        ({"kernel": "triton"}, "kernel='triton'"),
    ],
)
def test_losses_linear_bad_input_is_said(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "hidden": torch.zeros(4, 5),
        "head_weight": torch.zeros(3, 5),
        "target": torch.tensor([0, 1, -100, 2]),
        "scheme": "dimp",
        "log_quality": torch.zeros(4),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        linear_weighted_cross_entropy(**call)
