"""The exact join on a device against float64, sorted: every precision, both filters, awkward sizes and equal rows."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from obverse.kernels import neighbours
from obverse.kernels.launch import triton_interprets
from obverse.kernels.neighbours_lists import NO_KEY, indices_of, keys_of, similarities_of
from obverse.kernels.neighbours_reference import join_reference, self_join_reference
from obverse.kernels.neighbours_rows import margin_of, quick_rows, read_rows
from obverse.kernels.neighbours_seeds import group_rows


def _filters() -> list[Any]:
    if os.environ.get("TRITON_INTERPRET") == "1" and triton_interprets():
        return [pytest.param(("triton", "cpu"), id="triton-interpreter")]
    cuda = pytest.param(("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu)
    return [pytest.param(("torch", "cpu"), id="torch"), cuda]


@pytest.fixture(params=_filters())
def how(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """The filter, and the device it runs on."""
    if request.param[1] == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen: tuple[Any, str] = request.param
    return chosen


def _check(x: Tensor, k: int, how: tuple[Any, str], **options: Any) -> neighbours.JoinCounts:
    found = neighbours.self_join(x.to(how[1]), k, filter=how[0], **options)
    indices, similarities = self_join_reference(x, k)
    # A sum in another order differs by 1e-16, and rounds to another float32 once in some 10^8.
    assert torch.equal(found.similarities.cpu(), similarities)
    assert torch.equal(found.indices.cpu(), indices)
    return found.counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_kernels_neighbours_self_join_is_exact(
    how: tuple[Any, str], dtype: torch.dtype, precision: Any, rng: torch.Generator
) -> None:
    for n, dim, k in [(2, 3, 1), (3, 1, 5), (50, 7, 10), (257, 129, 10), (700, 64, 3)]:
        x = torch.randn(n, dim, generator=rng)
        x *= 10 ** (4 * torch.rand(n, 1, generator=rng) - 2)
        counts = _check(x.to(dtype), k, how, precision=precision)
        assert counts.precision == precision
        assert counts.compared == n * (n - 1) // 2


def test_kernels_neighbours_filter_leaves_most_pairs_out(how: tuple[Any, str], rng: torch.Generator) -> None:
    """Thresholds from the clusters are good: in clustered data some times k pairs a row are computed in float64."""
    centres = torch.randn(20, 48, generator=rng)
    x = centres[torch.randint(0, 20, (1200,), generator=rng)] + 0.4 * torch.randn(1200, 48, generator=rng)
    counts = _check(x, 10, how)
    assert counts.appended < 40 * 1200


def test_kernels_neighbours_equal_and_parallel_rows(how: tuple[Any, str], rng: torch.Generator) -> None:
    x = torch.randn(600, 20, generator=rng)
    x[100:350] = x[5]
    x[350:370] = x[6]
    x[370:400] = 2 * x[6]
    x[420] = -x[5]
    x[430:432] = 0.0
    x[430, 0], x[431, 0] = 1.0, 3.0  # zeros of either sign, one direction
    x[431, 1:] = -0.0
    assert group_rows(x) is not None
    for k in (1, 10, 300):
        _check(x, k, how)
    _check(x[5:6].expand(40, 20).contiguous(), 3, how)


def test_kernels_neighbours_near_ties_are_told_apart(how: tuple[Any, str], rng: torch.Generator) -> None:
    """Hundreds of rows whose cosines differ by less than float16 or int8 can tell."""
    base = torch.randn(1, 33, generator=rng)
    x = base + 1e-5 * torch.randn(300, 33, generator=rng)
    for precision in ("int8", "float16"):
        _check(x, 10, how, precision=precision)


def test_kernels_neighbours_small_capacity_only_means_more_bands(how: tuple[Any, str], rng: torch.Generator) -> None:
    x = torch.randn(300, 24, generator=rng)
    one, many = _check(x, 5, how), _check(x, 5, how, capacity=64)
    assert many.bands > one.bands
    assert many.appended <= one.appended


def test_kernels_neighbours_join_is_exact(how: tuple[Any, str], rng: torch.Generator) -> None:
    for n, m, dim, k in [(1, 1, 2, 1), (130, 300, 17, 10), (40, 700, 128, 3), (300, 5, 9, 10)]:
        x, y = torch.randn(n, dim, generator=rng), torch.randn(m, dim, generator=rng)
        for precision in ("auto", "int8", "float16"):
            found = neighbours.join(x.to(how[1]), y.to(how[1]), k, filter=how[0], precision=precision)
            indices, similarities = join_reference(x, y, k)
            assert torch.equal(found.similarities.cpu(), similarities)
            assert torch.equal(found.indices.cpu(), indices)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_kernels_neighbours_margin_holds_and_is_not_slack(precision: Any, rng: torch.Generator) -> None:
    """The proof's inequality on random and aligned pairs, and that it is not loose by more than a small factor."""
    x, y = torch.randn(400, 96, generator=rng), torch.randn(500, 96, generator=rng)
    y[:400] = x + 0.1 * y[:400]
    rows = [read_rows(x), read_rows(y)]
    quick = quick_rows(rows, precision, 3)
    products = quick[0].scale * quick[1].scale * (quick[0].values.double() @ quick[1].values.double().T)
    units = [r.stored.double() * r.inverse_norms[:, None] for r in rows]
    off = units[0] @ units[1].T - products
    margin = margin_of(quick[0], quick[1])
    assert off.max().item() <= margin
    assert off.max().item() >= margin / 20


def test_kernels_neighbours_keys_order_as_similarity_then_row(rng: torch.Generator) -> None:
    values = torch.cat([torch.randn(500, generator=rng), torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30])])
    values = values.clamp(-1, 1)[torch.randint(0, 506, (2000,), generator=rng)]
    rows = torch.randperm(2000, generator=rng) + (1 << 31) - 2001
    keys = keys_of(values, rows)
    order = keys.argsort(descending=True)
    expected = sorted(range(2000), key=lambda i: (-values[i].item(), rows[i].item()))
    assert torch.equal(order, torch.tensor(expected))
    assert torch.equal(indices_of(keys), rows)
    assert torch.equal(similarities_of(keys), values)
    assert int(keys.min()) > NO_KEY


def test_kernels_neighbours_bad_input_is_named(rng: torch.Generator) -> None:
    x = torch.randn(10, 4, generator=rng)
    for value, said in [(float("nan"), "nan"), (float("inf"), "inf"), (0.0, "norm 0")]:
        bad = x.clone()
        bad[7] = value
        with pytest.raises(ValueError, match=f"row 7: .*{said}"):
            neighbours.self_join(bad, 2)
    with pytest.raises(ValueError, match=r"saw \(10,\)"):
        neighbours.self_join(x[:, 0], 2)
    with pytest.raises(ValueError, match="float64"):
        neighbours.self_join(x.double(), 2)
    with pytest.raises(ValueError, match="at least 1, saw 0"):
        neighbours.self_join(x, 0)
    with pytest.raises(ValueError, match="4 columns"):
        neighbours.join(x, x[:, :3], 2)
    assert neighbours.self_join(x[:1], 3).indices.shape == (1, 0)
    assert neighbours.self_join(x[:0], 3).indices.shape == (0, 0)
    assert neighbours.join(x[:0], x, 3).indices.shape == (0, 3)
