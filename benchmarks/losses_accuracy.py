"""How near to float64 truth are ours and torch's losses and gradients of the same inputs in the same dtype?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness import OURS, Row
from benchmarks.losses_peers import CLIP, composed
from obverse.engine.losses import weighted_cross_entropy
from obverse.kernels.reference import row_losses
from obverse.kernels.weight_rule import make_rule

__all__ = ["accuracy_rows"]

COLUMNS = (2, 17, 1000, 32128, 151936)


def _errors(loss: Tensor, gradient: Tensor, truth: Tensor, true_gradient: Tensor) -> Iterator[tuple[str, float]]:
    yield "loss error", ((loss.double() - truth).abs() / truth.abs()).item()
    error = (gradient.double() - true_gradient).abs()
    row = true_gradient.abs().amax(dim=1, keepdim=True)
    yield "gradient error, worst over the row's largest", (error / row).max().item()
    seen = true_gradient.abs() > 1e-30
    relative = (error / true_gradient.abs().clamp_min(1e-30))[seen]
    yield "gradient error, rms of each entry's own", relative.square().mean().sqrt().item()


def accuracy_rows(device: str = "cpu") -> Iterator[Row]:
    """DIMP, the scheme whose weight depends on p: relative errors of ours and of torch's composition."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for columns in COLUMNS:
            n = max(8, min(4096, (1 << 21) // columns))
            z = (3 * torch.randn(n, columns, generator=rng)).to(device, dtype)
            target = torch.randint(0, columns, (n,), generator=rng).to(device)
            log_quality = (-3 * torch.rand(n, generator=rng)).to(device)
            exact = z.double().requires_grad_()
            rule = make_rule("dimp", weight_clip=CLIP)
            truth = row_losses(exact, target, rule, log_quality=log_quality.double()).loss.mean()
            truth.backward()
            assert exact.grad is not None
            shape = f"[{n},{columns}] {str(dtype).removeprefix('torch.')}"
            for name in (OURS, "torch eager"):
                leaf = z.clone().requires_grad_()
                if name == OURS:
                    loss = weighted_cross_entropy(
                        leaf, target, scheme="dimp", log_quality=log_quality, weight_clip=CLIP
                    )
                else:
                    loss = composed("dimp", leaf, target, log_quality, log_quality)
                loss.backward()
                assert leaf.grad is not None
                for metric, value in _errors(loss.detach(), leaf.grad, truth.detach(), exact.grad):
                    yield Row("losses", "dimp ce accuracy", name, shape, metric, value, "relative")
