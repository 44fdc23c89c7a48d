"""Other libraries' loss kernels on CUDA, weighted as their users weight them: what they return a row, times the weight.

A library that is not installed, does not run on this device, or returns another loss than ours is left out with a line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.losses_peers import weight_of

__all__ = ["kernels_over_head", "kernels_over_logits"]

RowLoss = Callable[..., Tensor]


def _liger_rows(logits: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    found: Tensor = liger_cross_entropy(logits, target, reduction="none")
    return found


def _quack_rows(logits: Tensor, target: Tensor) -> Tensor:
    from quack.cross_entropy import cross_entropy

    found: Tensor = cross_entropy(logits, target, reduction="none", inplace_backward=True)
    return found


def _liger_head(hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    found: Tensor = liger_fused_linear_cross_entropy(hidden, head, target, bias=bias, reduction="none")
    return found


def _quack_head(hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """It has no bias and, with reduction none, keeps all logits; so do its users who weight rows."""
    from quack.linear_cross_entropy import linear_cross_entropy

    found: Tensor = linear_cross_entropy(hidden, head, target, reduction="none")
    return found


def _cce_head(hidden: Tensor, head: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    found: Tensor = linear_cross_entropy(hidden, head, target, bias=bias, reduction="none")
    return found


def _weighted(rows: RowLoss, scheme: str, *arguments: Tensor) -> Tensor:
    *inputs, log_quality, log_diversity = arguments
    nll = rows(*inputs).float()
    return (weight_of(scheme, nll, log_quality, log_diversity) * nll).mean()


def _usable(
    peers: dict[str, RowLoss], scheme: str, arguments: tuple[Tensor, ...], expected: Tensor
) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    for name, rows in peers.items():
        call = partial(_weighted, rows, scheme, *arguments)
        try:
            value = call()
            torch.cuda.synchronize()
        except Exception as error:  # whatever a foreign package raises here, the others are still measured
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        if not bool((value - expected).abs() <= 2e-2 * expected.abs()):
            print(f"left out: {name}: loss {value.item()}, expected {expected.item()}", file=sys.stderr)
            continue
        found[name] = call
    return found


def kernels_over_logits(
    scheme: str, arguments: tuple[Tensor, ...], expected: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Provider to weighted loss; ``arguments`` are logits, target, log_quality, log_diversity."""
    return _usable({"liger-kernel": _liger_rows, "quack-kernels": _quack_rows}, scheme, arguments, expected)


def kernels_over_head(scheme: str, arguments: tuple[Tensor, ...], expected: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Provider to weighted loss; ``arguments`` are hidden, head, bias, target, log_quality, log_diversity."""
    peers: dict[str, RowLoss] = {"liger-kernel": _liger_head, "cut-cross-entropy": _cce_head}
    if not bool(arguments[2].any()):
        peers["quack-kernels"] = _quack_head
    return _usable(peers, scheme, arguments, expected)
