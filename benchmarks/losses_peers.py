"""What one would write in torch: the same losses composed, compiled, or worked a chunk of rows at a time by hand."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CLIP = (0.1, 10.0)

__all__ = ["CLIP", "ChunkedLinear", "ChunkedRows", "composed", "composed_linear", "torch_linear", "warm_heap"]


def weight_of(scheme: str, nll: Tensor, log_quality: Tensor, log_diversity: Tensor) -> Tensor:
    """The weight of each row, a constant."""
    if scheme == "plain":
        return torch.ones_like(nll)
    log_weight = log_quality - log_diversity if scheme == "imp" else log_quality + nll.detach()
    return log_weight.exp().clamp(*CLIP)


def composed(scheme: str, logits: Tensor, target: Tensor, log_quality: Tensor, log_diversity: Tensor) -> Tensor:
    """The loss in torch's own operations, the mean over rows."""
    nll = F.cross_entropy(logits, target, reduction="none").float()
    return (weight_of(scheme, nll, log_quality, log_diversity) * nll).mean()


def _gradient_in_place(scheme: str, z: Tensor, y: Tensor, q: Tensor, d: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A chunk's weighted losses, and its gradient as float32."""
    x = z.float()
    lse = torch.logsumexp(x, dim=1, keepdim=True)
    nll = (lse - x.gather(1, y[:, None]))[:, 0]
    w = weight_of(scheme, nll, q, d)
    p = (x - lse).exp_().mul_((w * scale)[:, None])
    p.scatter_add_(1, y[:, None], -(w * scale)[:, None])
    return w * nll, p


class ChunkedRows(torch.autograd.Function):
    """Cross-entropy by hand: gradient in the forward pass, 64 rows at a time."""

    @staticmethod
    def forward(ctx: Any, scheme: str, logits: Tensor, target: Tensor, q: Tensor, d: Tensor) -> Tensor:
        gradient, total = torch.empty_like(logits), torch.zeros(())
        for i in range(0, len(logits), 64):
            part = slice(i, i + 64)
            loss, p = _gradient_in_place(scheme, logits[part], target[part], q[part], d[part], 1 / len(logits))
            gradient[part] = p
            total += loss.sum()
        ctx.save_for_backward(gradient)
        return total / len(logits)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.saved_tensors[0], None, None, None  # upstream is 1 here


def composed_linear(
    scheme: str, hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor, log_quality: Tensor, log_diversity: Tensor
) -> Tensor:
    """The loss over a head in torch's own operations."""
    return composed(scheme, F.linear(hidden, head, bias), target, log_quality, log_diversity)


def torch_linear(options: Any) -> Callable[..., Tensor]:
    """``F.linear_cross_entropy`` with weights outside, as it takes none."""

    def loss(
        scheme: str, hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor, log_quality: Tensor, d: Tensor
    ) -> Tensor:
        nll = F.linear_cross_entropy(  # type: ignore[attr-defined]
            hidden, head, target, linear_bias=bias, reduction="none", options=options
        ).float()
        return (weight_of(scheme, nll, log_quality, d) * nll).mean()

    return loss


class ChunkedLinear(torch.autograd.Function):
    """A head by hand: three products, gradients in the forward pass, 256 rows at a time, float32 sums."""

    @staticmethod
    def forward(
        ctx: Any, scheme: str, hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor, q: Tensor, d: Tensor
    ) -> Tensor:
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        d_bias, total = torch.zeros_like(bias, dtype=torch.float32), torch.zeros(())
        for i in range(0, len(hidden), 256):
            part = slice(i, i + 256)
            z = torch.addmm(bias, hidden[part], head.t())
            loss, p = _gradient_in_place(scheme, z, target[part], q[part], d[part], 1 / len(hidden))
            p = p.to(hidden.dtype)
            d_hidden[part] = p @ head
            if head.dtype == torch.float32:
                d_head.addmm_(p.t(), hidden[part])
            else:
                d_head += p.t() @ hidden[part]
            d_bias += p.sum(0, dtype=torch.float32)
            total += loss.sum()
        ctx.save_for_backward(d_hidden, d_head.to(head.dtype), d_bias.to(bias.dtype))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.saved_tensors, None, None, None  # upstream is 1 here


@contextmanager
def warm_heap() -> Iterator[bool]:
    """glibc keeps freed memory: no page of a new gradient is a fresh one. Yields whether that could be had.

    By default a large tensor's memory goes back to the system when it is freed, and each pass faults it in again: a
    cold heap, which is what most programs have.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield False
        return
    threshold, trim = -3, -1
    mallopt(threshold, 1 << 30)
    mallopt(trim, (1 << 31) - 1)
    try:
        yield True
    finally:
        mallopt(threshold, 128 << 10)
        mallopt(trim, 128 << 10)
