"""The operators inside torch's own machinery: opcheck, torch.compile, torch.func, autocast, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from obverse.engine.losses import linear_weighted_cross_entropy, weighted_cross_entropy
from obverse.kernels import linear_cross_entropy, ops  # noqa: F401  (they define the operators)
from obverse.kernels.launch import triton_interprets
from obverse.kernels.weight_rule import make_rule

pytestmark = pytest.mark.skipif(triton_interprets(), reason="this process is for Triton's interpreter")

RULE = (*make_rule("dimp", weight_clip=(0.1, 10.0), label_smoothing=0.1), "cpp")


@pytest.fixture
def problem(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    logits = 2 * torch.randn(12, 33, generator=rng)
    target = torch.randint(0, 33, (12,), generator=rng)
    target[4] = -100
    return logits, target, -torch.rand(12, generator=rng)


def dimp(logits: Tensor, target: Tensor, log_quality: Tensor, **settings: Any) -> Tensor:
    return weighted_cross_entropy(
        logits, target, scheme="dimp", log_quality=log_quality, label_smoothing=0.1, **settings
    )


@pytest.mark.parametrize("name", ["ce_forward", "ce_total", "ce_backward", "ce_scale_", "linear_ce_total"])
def test_kernels_operators_pass_opcheck(
    name: str, problem: tuple[Tensor, Tensor, Tensor], rng: torch.Generator
) -> None:
    """Schema, fake shapes, autograd registration, and the same numbers under AOT dispatch."""
    logits, target, log_quality = problem
    rows = (logits.requires_grad_(), target, None, log_quality, None, None)
    hidden = torch.randn(12, 5, generator=rng, requires_grad=True)
    head = torch.randn(33, 5, generator=rng, requires_grad=True)
    linear = (hidden, head, None, target, None, log_quality, None, None)
    _, fields, _ = ops.ce_forward(*rows, *RULE)
    arguments: dict[str, tuple[Any, ...]] = {
        "ce_forward": (*rows, *RULE),
        "ce_total": (*rows, *RULE, None),
        "ce_backward": (*rows, *RULE, fields, torch.rand(12, generator=rng)),
        "ce_scale_": (torch.rand(3, 4, generator=rng), torch.tensor(2.0), "cpp"),
        "linear_ce_total": (*linear, *RULE, None, [True, True, False]),
    }
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if (
        "total" not in name
    ):  # opcheck hands out the gradient, which the backward pass scales in place; no caller sees it
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.obverse, name).default, arguments[name], test_utils=checks)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_kernels_compile_whole_and_agree_with_eager(reduction: Any, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, log_quality = problem

    def loss(z: Tensor, head: Tensor) -> Tensor:
        return dimp(z @ head, target, log_quality, reduction=reduction).sum() * 3.0

    compiled: Callable[..., Tensor] = torch.compile(loss, fullgraph=True)
    seen = []
    for call in (loss, compiled):
        z, head = logits.clone().requires_grad_(), torch.eye(33).requires_grad_()
        value = call(z, head)
        value.backward()
        assert z.grad is not None
        assert head.grad is not None
        seen.append((value.detach(), z.grad, head.grad))
    for eager, fast in zip(*seen, strict=True):
        torch.testing.assert_close(eager, fast, rtol=1e-6, atol=1e-7)


def test_kernels_linear_compiles_whole_and_agrees_with_eager(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    _, target, log_quality = problem
    rng = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(12, 7, generator=rng), torch.randn(33, 7, generator=rng)

    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        given = {"bias": b, "scheme": "dimp", "log_quality": log_quality}
        return linear_weighted_cross_entropy(x.tanh(), w, target, **given)

    compiled: Callable[..., Tensor] = torch.compile(loss, fullgraph=True)
    seen = []
    for call in (loss, compiled):
        leaves = [t.clone().requires_grad_() for t in (hidden, head, torch.zeros(33))]
        value = call(*leaves)
        value.backward()
        seen.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for eager, fast in zip(*seen, strict=True):
        torch.testing.assert_close(eager, fast, rtol=1e-5, atol=1e-6)


def test_kernels_compile_takes_new_batch_sizes(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    compiled = torch.compile(dimp, fullgraph=True, dynamic=True)
    logits, target, log_quality = problem
    for n in (12, 7, 5):
        ours = compiled(logits[:n], target[:n], log_quality[:n])
        torch.testing.assert_close(ours, dimp(logits[:n], target[:n], log_quality[:n]))


def test_kernels_func_grad_is_autograds(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, log_quality = problem
    functional = torch.func.grad(dimp)(logits, target, log_quality)
    z = logits.clone().requires_grad_()
    dimp(z, target, log_quality).backward()
    torch.testing.assert_close(functional, z.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_kernels_vmap_is_a_loop(reduction: Any, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, log_quality = problem
    batches = [t.reshape(3, 4, *t.shape[1:]) for t in (logits, target, log_quality)]

    def loss(z: Tensor, y: Tensor, q: Tensor) -> Tensor:
        return dimp(z, y, q, reduction=reduction)

    mapped = torch.func.vmap(loss)(*batches)
    looped = torch.stack([loss(*(b[i] for b in batches)) for i in range(3)])
    torch.testing.assert_close(mapped, looped)
    gradients = torch.func.vmap(torch.func.grad(lambda z, y, q: loss(z, y, q).sum()))(*batches)
    each = torch.stack(
        [torch.func.grad(lambda z, y, q: loss(z, y, q).sum())(*(b[i] for b in batches)) for i in range(3)]
    )
    torch.testing.assert_close(gradients, each, rtol=1e-5, atol=1e-7)


def test_kernels_autocast_linear_works_in_its_dtype(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    _, target, _ = problem
    rng = torch.Generator().manual_seed(3)
    hidden = torch.randn(12, 16, generator=rng).requires_grad_()
    head = torch.randn(33, 16, generator=rng).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_weighted_cross_entropy(hidden, head, target)
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    rounded = F.cross_entropy(hidden.detach().bfloat16().double() @ head.detach().bfloat16().double().T, target)
    torch.testing.assert_close(loss.double(), rounded, rtol=2e-3, atol=0)


def test_kernels_gradient_checkpointing_changes_nothing(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, log_quality = problem
    seen = []
    for kept in (False, True):
        z = logits.clone().requires_grad_()
        loss = checkpoint(dimp, z, target, log_quality, use_reentrant=False) if kept else dimp(z, target, log_quality)
        loss.backward()
        seen.append(z.grad)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
