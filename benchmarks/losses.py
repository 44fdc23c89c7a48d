"""How fast is the weighted cross-entropy, forward and backward, beside what one would write in torch?

``python -m benchmarks.losses [--quick] [--json] [--csv FILE] [--only PART,...]``, or ``pytest benchmarks/losses.py``

The parts: ``rows`` (over logits), ``linear`` (over a linear head) and ``accuracy`` (errors against float64). Peers
compute the same loss: ``torch eager`` composes it, ``torch compile`` is that composition compiled, ``torch
hand-chunked`` works it 64 rows at a time with the gradient made in the forward pass. A bare copy of the logits is shown
as a yardstick. On a CPU each large case is timed with a cold heap (fresh memory for each gradient, as programs have by
default) and a warm one. On CUDA the same runs in larger shapes, beside the kernels of other libraries installed there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import OURS, Row, interleave, peak_extra_memory, run_main, timing_rows
from benchmarks.losses_accuracy import accuracy_rows
from benchmarks.losses_cuda import kernels_over_logits
from benchmarks.losses_linear import linear_rows
from benchmarks.losses_peers import CLIP, ChunkedRows, composed, warm_heap
from obverse.engine.losses import weighted_cross_entropy
from obverse.kernels.reference import row_losses
from obverse.kernels.weight_rule import make_rule

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

COPY = "copy of the logits"
CLONE = "clone of the logits"


class Case(NamedTuple):
    """One loss on one shape."""

    scheme: str
    rows: int
    columns: int
    dtype: torch.dtype
    inplace: bool = False

    @property
    def shape(self) -> str:
        """As the rows print it."""
        return f"[{self.rows},{self.columns}] {str(self.dtype).removeprefix('torch.')}"

    @property
    def op(self) -> str:
        """As the rows print it."""
        return f"{self.scheme} ce fwd+bwd" + ", in place" * self.inplace


QUICK = [
    Case("dimp", 1024, 32128, torch.float32),
    Case("dimp", 1024, 32128, torch.bfloat16),
    Case("imp", 65536, 2, torch.float32),
]
FULL = [
    *(
        Case(s, 4096, 32128, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for s in ("sample_weight", "imp", "dimp")
    ),
    *(Case("dimp", 4096, 32128, dtype, True) for dtype in (torch.float32, torch.bfloat16)),
    Case("dimp", 4096, 1000, torch.float32),
    *(Case(s, 65536, columns, torch.float32) for columns in (2, 3, 8, 16, 64) for s in ("imp", "dimp")),
    Case("dimp", 65536, 8, torch.bfloat16),
    Case("dimp", 32, 2, torch.float32),
]
CUDA = [
    *(Case(s, 8192, 128256, torch.bfloat16, True) for s in ("sample_weight", "imp", "dimp")),
    Case("dimp", 4096, 32128, torch.bfloat16),
    Case("dimp", 4096, 16, torch.float32),
]


class Problem(NamedTuple):
    """The tensors of a case. The two figures of the checkers are what the weights are made of."""

    logits: Tensor
    target: Tensor
    log_quality: Tensor
    log_diversity: Tensor


def make_problem(case: Case, device: str) -> Problem:
    """Random logits with a gradient, targets, and log-probabilities of the two checkers."""
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(case.rows, case.columns, generator=rng)
    target = torch.randint(0, case.columns, (case.rows,), generator=rng)
    q, d = (-3 * torch.rand(case.rows, generator=rng) for _ in range(2))
    return Problem(logits.to(device, case.dtype).requires_grad_(), target.to(device), q.to(device), d.to(device))


def inputs_of(scheme: str, problem: Problem) -> dict[str, Tensor]:
    """The inputs that the scheme takes; a sample weight is what IMP's would be."""
    if scheme == "sample_weight":
        return {"sample_weight": (problem.log_quality - problem.log_diversity).exp().clamp(*CLIP)}
    given = {"imp": ("log_quality", "log_diversity"), "dimp": ("log_quality",)}.get(scheme, ())
    return {name: getattr(problem, name) for name in given}


class _MadeHere(torch.autograd.Function):
    """Logits as an operation's output, which may be given away; costs nothing."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


def ours(case: Case, problem: Problem, inputs: dict[str, Tensor]) -> Tensor:
    """Our loss, the mean over rows."""
    logits = _MadeHere.apply(problem.logits) if case.inplace else problem.logits  # type: ignore[no-untyped-call]
    return weighted_cross_entropy(
        logits,
        problem.target,
        scheme=case.scheme,  # type: ignore[arg-type]
        weight_clip=CLIP,
        inplace=case.inplace,
        **inputs,  # type: ignore[arg-type]
    )


def step(problem: Problem, loss: Callable[[], Tensor]) -> None:
    """Forward and backward, into a fresh gradient."""
    problem.logits.grad = None
    loss().backward()


def check(case: Case, device: str) -> None:
    """Raise unless loss and gradient agree with float64 truth on the case's width."""
    small = case._replace(rows=min(case.rows, 64), inplace=False)
    problem = make_problem(small, device)
    inputs = inputs_of(small.scheme, problem)
    step(problem, partial(ours, small, problem, inputs))
    truth = problem.logits.detach().double().requires_grad_()
    rule = make_rule(small.scheme, weight_clip=CLIP)  # type: ignore[arg-type]
    rows = row_losses(truth, problem.target, rule, **inputs)
    rows.loss.mean().backward()
    assert problem.logits.grad is not None
    assert truth.grad is not None
    bound = max(torch.finfo(small.dtype).eps, 1e-5) * truth.grad.abs().max()
    error = (problem.logits.grad.double() - truth.grad).abs().max()
    if not bool(error <= bound):
        raise RuntimeError(f"{case.scheme} {case.shape}: gradient error {error:.3g}, allowed {bound:.3g}")
    loss_error = (ours(small, problem, inputs).double() - rows.loss.mean()).abs() / rows.loss.mean().abs()
    if not bool(loss_error <= 1e-5):
        raise RuntimeError(f"{case.scheme} {case.shape}: relative loss error {loss_error:.3g}, allowed 1e-5")


def calls(case: Case, problem: Problem, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """What is timed: provider to one forward and backward pass."""
    scheme = "imp" if case.scheme == "sample_weight" else case.scheme
    tensors = (problem.logits, problem.target, problem.log_quality, problem.log_diversity)
    inputs = inputs_of(case.scheme, problem)
    out = torch.empty_like(problem.logits)
    found: dict[str, Callable[[], object]] = {
        OURS: partial(step, problem, partial(ours, case, problem, inputs)),
        "torch eager": partial(step, problem, partial(composed, scheme, *tensors)),
    }
    if compiled:
        fast: Any = torch.compile(composed, dynamic=False)
        found["torch compile"] = partial(step, problem, partial(fast, scheme, *tensors))
    if problem.logits.device.type == "cpu" and case.columns > 1000:
        chunked: Any = ChunkedRows.apply
        found["torch hand-chunked"] = partial(step, problem, partial(chunked, scheme, *tensors))
    if problem.logits.device.type == "cuda":
        expected = ours(case._replace(inplace=False), problem, inputs).detach()
        more = kernels_over_logits(scheme, tensors, expected)
        found |= {name: partial(step, problem, call) for name, call in more.items()}
    found[COPY] = partial(out.copy_, problem.logits.detach())
    if case.columns > 1000:
        found[CLONE] = problem.logits.detach().clone
    return found


def _has_heaps(case: Case) -> bool:
    """Whether its tensors are large enough to be given back to the system when freed."""
    return case.rows * case.columns >= 1 << 17


def measure_case(case: Case, device: str, repeats: int, *, warm: bool = False) -> Iterator[Row]:
    """Correctness, then time of every provider, then the memory that ours and the peers take.

    ``warm``: it is called inside `warm_heap`; times only.
    """
    check(case, device)
    torch.compiler.reset()
    problem = make_problem(case, device)
    timed = calls(case, problem, compiled=not case.inplace)
    wait = torch.cuda.synchronize if device == "cuda" else None
    inner = 1 if case.rows * case.columns > 1 << 22 else 10
    timings = interleave(timed, repeats=repeats, inner=inner, warmup=3 if warm else 2, synchronise=wait)
    heaps = device == "cpu" and _has_heaps(case)
    op = case.op + (", warm heap" if warm else ", cold heap") * heaps
    unit = "ms" if inner == 1 else "us"
    yield from timing_rows("losses", op, case.shape, timings, unit=unit, references=(COPY, CLONE))
    if heaps and not warm:
        yield from _memory_rows(case, problem, timed)


def _memory_rows(case: Case, problem: Problem, timed: dict[str, Callable[[], object]]) -> Iterator[Row]:
    gradient = 0 if case.inplace else problem.logits.numel() * problem.logits.element_size()
    for name in (OURS, "torch eager", "torch compile", "torch hand-chunked"):
        if name not in timed or (case.inplace and name != OURS):
            continue
        problem.logits.grad = None
        peak = peak_extra_memory(timed[name])
        # Below the gradient's own size the allocator has used memory that it held already: nothing was measured.
        if peak is not None and peak >= gradient:
            yield Row("losses", case.op, name, case.shape, "peak beyond gradient", (peak - gradient) / 2**20, "MiB")


PARTS = ("rows", "linear", "accuracy")


def measure(quick: bool, parts: Sequence[str] = PARTS) -> Iterator[Row]:
    """Every case of this machine, ours beside the peers."""
    cuda = torch.cuda.is_available()
    if "rows" in parts:
        for case in QUICK if quick else [] if cuda else FULL:
            yield from measure_case(case, "cpu", 5 if quick else 11)
        for case in [] if not cuda else CUDA[3:] if quick else CUDA:
            yield from measure_case(case, "cuda", 20)
    if "linear" in parts:
        yield from linear_rows(quick=quick)
    if "accuracy" in parts and not quick:
        yield from accuracy_rows()
    if "rows" in parts and not quick and not cuda:
        yield from _warm_rows()


def _warm_rows() -> Iterator[Row]:
    """Last of all: what a warm heap has kept, no later case could have cold."""
    with warm_heap() as could:
        for case in FULL:
            if could and _has_heaps(case):
                yield from measure_case(case, "cpu", 11, warm=True)


def _on_this_machine() -> tuple[Case, str]:
    return (CUDA[3], "cuda") if torch.cuda.is_available() else (QUICK[0], "cpu")


def test_losses_ours(benchmark: BenchmarkFixture) -> None:
    case, device = _on_this_machine()
    check(case, device)
    problem = make_problem(case, device)
    benchmark.pedantic(calls(case, problem, compiled=False)[OURS], rounds=7, warmup_rounds=2)  # type: ignore[no-untyped-call]


def test_losses_torch_eager(benchmark: BenchmarkFixture) -> None:
    case, device = _on_this_machine()
    problem = make_problem(case, device)
    benchmark.pedantic(calls(case, problem, compiled=False)["torch eager"], rounds=7, warmup_rounds=2)  # type: ignore[no-untyped-call]


def main() -> int:
    """As `run_main`, with ``--only`` before it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    options, rest = parser.parse_known_args()
    return run_main("losses", partial(measure, parts=options.only.split(",")), rest)


if __name__ == "__main__":
    raise SystemExit(main())
