"""The loss over a linear head: time, memory and accuracy beside torch's own ways and beside three bare products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.harness import OURS, Row, Timing, interleave, peak_extra_memory, timing_rows
from benchmarks.losses_cuda import kernels_over_head
from benchmarks.losses_peers import CLIP, ChunkedLinear, composed_linear, torch_linear
from obverse.engine.losses import linear_weighted_cross_entropy
from obverse.kernels.reference import row_losses
from obverse.kernels.weight_rule import make_rule

__all__ = ["linear_rows"]

PRODUCTS = "three bare products, the best"
PRODUCTS_MM = "three bare products, torch.mm"


class LinearCase(NamedTuple):
    """DIMP on one shape."""

    rows: int
    width: int
    columns: int
    dtype: torch.dtype

    @property
    def shape(self) -> str:
        """As the rows print it."""
        return f"[{self.rows},{self.width},{self.columns}] {str(self.dtype).removeprefix('torch.')}"


QUICK = [LinearCase(512, 768, 32128, torch.bfloat16)]
FULL = [LinearCase(2048, 768, 32128, dtype) for dtype in (torch.float32, torch.bfloat16)]
CUDA = [LinearCase(8192, 4096, 128256, torch.bfloat16)]


class LinearProblem(NamedTuple):
    """Leaves with gradients, targets and the checkers' figures."""

    hidden: Tensor
    head: Tensor
    bias: Tensor
    target: Tensor
    log_quality: Tensor
    log_diversity: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """What gradients go to."""
        return self.hidden, self.head, self.bias


def make_problem(case: LinearCase, device: str) -> LinearProblem:
    """Random hidden states under a head whose logits have a deviation of about 2."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(case.rows, case.width, generator=rng)
    head = 2 * torch.randn(case.columns, case.width, generator=rng) / case.width**0.5
    # No bias to speak of on CUDA, where not every peer has one.
    bias = torch.randn(case.columns, generator=rng) / 10 * (device == "cpu")
    target = torch.randint(0, case.columns, (case.rows,), generator=rng)
    q, d = (-3 * torch.rand(case.rows, generator=rng) for _ in range(2))
    leaves = (t.to(device, case.dtype).requires_grad_() for t in (hidden, head, bias))
    return LinearProblem(*leaves, target.to(device), q.to(device), d.to(device))


def ours(problem: LinearProblem) -> Tensor:
    """Our loss, the mean over rows."""
    return linear_weighted_cross_entropy(
        problem.hidden,
        problem.head,
        problem.target,
        bias=problem.bias,
        scheme="dimp",
        log_quality=problem.log_quality,
        weight_clip=CLIP,
    )


def step(problem: LinearProblem, loss: Callable[[], Tensor]) -> Tensor:
    """Forward and backward, into fresh gradients."""
    for leaf in problem.leaves:
        leaf.grad = None
    value = loss()
    value.backward()
    return value.detach()


def truth(problem: LinearProblem, rows: int) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the first rows in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (problem.hidden[:rows], problem.head, problem.bias)]
    logits = F.linear(*leaves)
    rule = make_rule("dimp", weight_clip=CLIP)
    loss = row_losses(logits, problem.target[:rows], rule, log_quality=problem.log_quality[:rows]).loss.mean()
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def check(case: LinearCase, device: str) -> None:
    """Raise unless a small batch's loss and gradients agree with float64 truth."""
    problem = make_problem(case._replace(rows=96), device)
    loss = step(problem, partial(ours, problem))
    expected, gradients = truth(problem, 96)
    near = 2e-6 if case.dtype == torch.float32 else 1e-5 if device == "cpu" else 1e-3
    if not bool((loss.double() - expected).abs() <= near * expected.abs()):
        raise RuntimeError(f"linear {case.shape}: loss {loss.item()}, truth {expected.item()}")
    for leaf, gradient in zip(problem.leaves, gradients, strict=True):
        assert leaf.grad is not None
        error = (leaf.grad.double() - gradient).abs().max() / gradient.abs().max()
        if not bool(error <= 4 * torch.finfo(case.dtype).eps + 1e-5):
            raise RuntimeError(f"linear {case.shape}: relative gradient error {error.item():.3g}")


def bare_products(problem: LinearProblem) -> dict[str, Callable[[], object]]:
    """The three matrix products alone, into memory that is there already: nobody can be faster with that library."""
    x, w = problem.hidden.detach(), problem.head.detach()
    z, dx, dw = x @ w.t(), torch.empty_like(x), torch.empty_like(w)

    def by_mm() -> None:
        torch.mm(x, w.t(), out=z)
        torch.mm(z, w, out=dx)
        torch.mm(z.t(), x, out=dw)

    found: dict[str, Callable[[], object]] = {PRODUCTS_MM: by_mm}
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # oneDNN takes the second operand as a linear layer's weight, [out, in]; both are packed here as they stand.
        linear: Any = torch.ops.mkldnn._linear_pointwise
        wt, xt = w.t().contiguous(), x.t().contiguous()
        zt = z.t().contiguous()

        def by_onednn() -> None:
            linear(x, w, None, "none", [], "")
            linear(z, wt, None, "none", [], "")
            linear(zt, xt, None, "none", [], "")

        found["three bare products, oneDNN"] = by_onednn
    return found


def peers(problem: LinearProblem, *, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Provider to the loss; each is the same weighted mean."""
    arguments = ("dimp", *problem)
    found: dict[str, Callable[[], Tensor]] = {"torch eager": partial(composed_linear, *arguments)}
    if compiled:
        fast: Any = torch.compile(composed_linear, dynamic=False)
        found["torch compile"] = partial(fast, *arguments)
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy"] = partial(torch_linear(None), *arguments)
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
            found["F.linear_cross_entropy, chunks of 256"] = partial(torch_linear(options), *arguments)
    if problem.hidden.device.type == "cpu":
        chunked: Any = ChunkedLinear.apply
        found["torch hand-chunked"] = partial(chunked, *arguments)
    else:
        found |= kernels_over_head("dimp", tuple(problem), ours(problem).detach())
    return found


def linear_rows(*, quick: bool) -> Iterator[Row]:
    """Every case: time, then peak memory beyond the gradients, then the loss's error."""
    cuda = torch.cuda.is_available()
    for case in CUDA if cuda else QUICK if quick else FULL:
        yield from _case_rows(case, "cuda" if cuda else "cpu", quick=quick)


def _case_rows(case: LinearCase, device: str, *, quick: bool) -> Iterator[Row]:
    check(case, device)
    torch.compiler.reset()
    problem = make_problem(case, device)
    losses = {OURS: partial(ours, problem), **peers(problem, compiled=not quick)}
    steps: dict[str, Callable[[], Tensor]] = {name: partial(step, problem, loss) for name, loss in losses.items()}
    bare = bare_products(problem)
    wait = torch.cuda.synchronize if device == "cuda" else None
    timings = interleave({**steps, **bare}, repeats=3 if quick else 5, warmup=1, synchronise=wait)
    timings[PRODUCTS] = min(
        (timings.pop(name) for name in list(bare) if name != PRODUCTS_MM), default=timings[PRODUCTS_MM]
    )
    timings[PRODUCTS] = min(timings[PRODUCTS], timings[PRODUCTS_MM])
    op = "dimp linear ce fwd+bwd"
    yield from timing_rows("losses", op, case.shape, timings, references=(PRODUCTS, PRODUCTS_MM))
    yield _over_products(case, op, timings)
    yield from _memory_rows(case, problem, steps, device, op)
    expected, _ = truth(problem, case.rows) if not quick and device == "cpu" else (None, [])
    if expected is not None:
        for name, call in steps.items():
            error = ((call().double() - expected).abs() / expected.abs()).item()
            yield Row("losses", op, name, case.shape, "loss error", error, "relative")


def _over_products(case: LinearCase, op: str, timings: dict[str, Timing]) -> Row:
    over = timings[OURS].median / timings[PRODUCTS].median
    return Row("losses", op, OURS, case.shape, "time over three bare products", over, "x")


def _memory_rows(
    case: LinearCase, problem: LinearProblem, steps: dict[str, Callable[[], Tensor]], device: str, op: str
) -> Iterator[Row]:
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in problem.leaves)
    logits = case.rows * case.columns * case.dtype.itemsize
    for name, call in steps.items():
        for leaf in problem.leaves:
            leaf.grad = None
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            peak: int | None = torch.cuda.max_memory_allocated() - before
        else:
            peak = peak_extra_memory(call)
        if peak is not None and peak >= gradients:
            beyond = peak - gradients
            yield Row("losses", op, name, case.shape, "peak beyond gradients", beyond / 2**20, "MiB")
            yield Row("losses", op, name, case.shape, "that over all logits", beyond / logits, "x")
