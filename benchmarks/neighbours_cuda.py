"""The exact self-join on a GPU beside FlashLib, FAISS and torch; a provider that fails or disagrees is left out.

All get the same unit rows on the device: ours in float32, peers in bfloat16 (FlashLib, torch) and what FAISS takes.
Peers answer N searches for k + 1 rows; they rank by bfloat16 products, so their lists may differ from the exact ones
by ties of that precision: what they reach is in the recall rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import OURS, Row, interleave, timing_rows
from obverse.kernels import neighbours

BENCH = "neighbours"
K = 10


def _rows(n: int, dim: int, device: str) -> Tensor:
    """Zipf-sized clusters, each a Gaussian of few directions about its centre, made on the device."""
    rng = torch.Generator(device).manual_seed(0)
    number = max(1, n // 200)
    share = 1 / torch.arange(1, number + 1, device=device)
    centres = torch.nn.functional.normalize(torch.randn(number, dim, generator=rng, device=device), dim=1)
    axes = torch.randn(24, dim, generator=rng, device=device) * torch.arange(1, 25, device=device)[:, None] ** -0.7
    axes *= 0.5 / torch.linalg.matrix_norm(axes)
    out = torch.empty(n, dim, device=device)
    for low in range(0, n, 1 << 18):
        size = min(1 << 18, n - low)
        own = torch.multinomial(share, size, replacement=True, generator=rng)
        values = centres[own] + torch.randn(size, 24, generator=rng, device=device) @ axes
        values += 0.15 / dim**0.5 * torch.randn(size, dim, generator=rng, device=device)
        out[low : low + size] = torch.nn.functional.normalize(values, dim=1)
    return out


def _without_self(found: Tensor) -> Tensor:
    own = found == torch.arange(len(found), device=found.device)[:, None]
    own[~own.any(dim=1), -1] = True
    return found[~own].view(len(found), K)


def _torch(x: Tensor) -> Tensor:
    short = x.bfloat16()
    parts = [(short[low : low + 4096] @ short.T).topk(K + 1, dim=1).indices for low in range(0, len(x), 4096)]
    return _without_self(torch.cat(parts))


def _flashlib(x: Tensor) -> Tensor:
    from flashlib import flash_knn

    short = x.bfloat16()
    return _without_self(flash_knn(short, short, K + 1)[1].long())


def _faiss(x: Tensor) -> Tensor:
    import faiss
    import faiss.contrib.torch_utils

    short = x.bfloat16()
    resources = faiss.StandardGpuResources()
    found = faiss.knn_gpu(resources, short, short, K + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return _without_self(found.long())


def _recall(x: Tensor, found: Tensor, sample: int = 2000) -> float:
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:sample].to(x.device)
    best = torch.full((len(rows), K), -torch.inf, dtype=torch.float64, device=x.device)
    for low in range(0, len(x), 1 << 16):
        values = x[rows].double() @ x[low : low + (1 << 16)].double().T
        inside = (rows >= low) & (rows < low + (1 << 16))
        values[inside.nonzero()[:, 0], rows[inside] - low] = -torch.inf
        best = torch.cat([best, values.topk(min(K, values.shape[1]), dim=1).values], dim=1).topk(K, dim=1).values
    got = torch.einsum("rd,rkd->rk", x[rows].double(), x[found[rows]].double())
    return float((got >= best[:, -1:] - 1e-6).double().mean())


def _usable(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    peers: dict[str, Callable[[Tensor], Tensor]] = {"flashlib bf16": _flashlib, "faiss-gpu bf16": _faiss}
    peers["torch bf16 mm + topk"] = _torch
    found: dict[str, Callable[[], Tensor]] = {}
    for name, call in peers.items():
        try:
            call(x[:20_000])
            torch.cuda.synchronize()
        except Exception as error:  # whatever a foreign package raises here, the others are still measured
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        found[name] = lambda call=call: call(x)  # type: ignore[misc]
    return found


def cuda_rows(quick: bool) -> Iterator[Row]:
    """65,536 and a million rows beside peers, ten million alone."""
    for n, repeats in [(65_536, 5)] if quick else [(65_536, 5), (1_000_000, 3), (10_000_000, 1)]:
        x = _rows(n, 384, "cuda")
        shape = f"clustered, {n:,} x 384"
        op = f"exact self-join on a GPU, k={K}"
        result = neighbours.self_join(x, K)
        recall = _recall(x, result.indices)
        if recall < 1:
            raise AssertionError(f"an exact join of recall {recall}")
        cases: dict[str, Callable[[], object]] = {OURS: lambda x=x: neighbours.self_join(x, K)}  # type: ignore[misc]
        if n <= 1_000_000:
            peers = _usable(x)
            cases |= peers
            for name, call in peers.items():
                yield Row(BENCH, op, name, shape, f"recall@{K}", _recall(x, call()), "share")
        yield Row(BENCH, op, OURS, shape, f"recall@{K}", recall, "share")
        yield Row(BENCH, op, OURS, shape, "pairs in float64 a row", result.counts.appended / n, "pairs")
        timings = interleave(cases, repeats=repeats, warmup=1, synchronise=torch.cuda.synchronize)
        yield from timing_rows(BENCH, op, shape, timings, unit="s")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        neighbours.self_join(x, K)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        yield Row(BENCH, op, OURS, shape, "peak beyond the vectors", peak, "MiB")
        del x, cases, result
