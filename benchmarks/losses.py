"""How fast is the weighted cross-entropy, forward and backward, beside what one would write in torch?

``python -m benchmarks.losses [--quick] [--json] [--csv FILE]``, or ``pytest benchmarks/losses.py``.

Peers compute the same loss: ``torch eager`` composes it, ``torch compile`` is that composition compiled. A bare
copy of the logits is shown as a yardstick. On CUDA the same runs in larger shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.harness import OURS, Row, interleave, peak_extra_memory, run_main, timing_rows
from obverse.engine.losses import weighted_cross_entropy
from obverse.kernels.reference import row_losses
from obverse.kernels.weight_rule import make_rule

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CLIP = (0.1, 10.0)
COPY = "copy of the logits"


class Case(NamedTuple):
    """One loss on one shape."""

    scheme: str
    rows: int
    columns: int
    dtype: torch.dtype

    @property
    def shape(self) -> str:
        """As the rows print it."""
        return f"[{self.rows},{self.columns}] {str(self.dtype).removeprefix('torch.')}"


QUICK = [
    Case("dimp", 512, 32128, torch.float32),
    Case("dimp", 512, 32128, torch.bfloat16),
    Case("imp", 16384, 16, torch.float32),
]
FULL = [
    *(Case(s, 4096, 32128, dtype) for s in ("imp", "dimp") for dtype in (torch.float32, torch.bfloat16)),
    Case("imp", 4096, 1000, torch.float32),
    Case("dimp", 4096, 1000, torch.float32),
    Case("imp", 65536, 16, torch.float32),
    Case("imp", 65536, 2, torch.float32),
    Case("dimp", 32, 2, torch.float32),
]
CUDA = [
    *(Case(s, 8192, 128256, torch.bfloat16) for s in ("plain", "imp", "dimp")),
    Case("dimp", 4096, 32128, torch.bfloat16),
    Case("dimp", 4096, 16, torch.float32),
]


class Problem(NamedTuple):
    """The tensors of a case."""

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
    """The checkers' figures that the scheme takes."""
    given = {"imp": ("log_quality", "log_diversity"), "dimp": ("log_quality",)}.get(scheme, ())
    return {name: getattr(problem, name) for name in given}


def ours(case: Case, problem: Problem) -> Tensor:
    """Our loss, the mean over rows."""
    return weighted_cross_entropy(
        problem.logits,
        problem.target,
        scheme=case.scheme,  # type: ignore[arg-type]
        weight_clip=CLIP,
        **inputs_of(case.scheme, problem),  # type: ignore[arg-type]
    )


def composed(scheme: str, logits: Tensor, target: Tensor, log_quality: Tensor, log_diversity: Tensor) -> Tensor:
    """The same loss in torch's own operations."""
    nll = F.cross_entropy(logits, target, reduction="none").float()
    if scheme == "plain":
        return nll.mean()
    log_weight = log_quality - log_diversity if scheme == "imp" else log_quality + nll.detach()
    return (log_weight.exp().clamp(*CLIP) * nll).mean()


def step(problem: Problem, loss: Callable[[], Tensor]) -> None:
    """Forward and backward, into a fresh gradient."""
    problem.logits.grad = None
    loss().backward()


def check(case: Case, device: str) -> None:
    """Raise unless loss and gradient agree with float64 truth on the case's width."""
    small = case._replace(rows=min(case.rows, 64))
    problem = make_problem(small, device)
    step(problem, partial(ours, small, problem))
    truth = problem.logits.detach().double().requires_grad_()
    rule = make_rule(small.scheme, weight_clip=CLIP)  # type: ignore[arg-type]
    rows = row_losses(truth, problem.target, rule, **inputs_of(small.scheme, problem))
    rows.loss.mean().backward()
    assert problem.logits.grad is not None
    assert truth.grad is not None
    bound = max(torch.finfo(small.dtype).eps, 1e-5) * truth.grad.abs().max()
    error = (problem.logits.grad.double() - truth.grad).abs().max()
    if not bool(error <= bound):
        raise RuntimeError(f"{case.scheme} {case.shape}: gradient error {error:.3g}, allowed {bound:.3g}")
    loss_error = (ours(small, problem).double() - rows.loss.mean()).abs() / rows.loss.mean().abs()
    if not bool(loss_error <= 1e-5):
        raise RuntimeError(f"{case.scheme} {case.shape}: relative loss error {loss_error:.3g}, allowed 1e-5")


def calls(case: Case, problem: Problem, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """What is timed: provider to one forward and backward pass."""
    tensors = (problem.logits, problem.target, problem.log_quality, problem.log_diversity)
    eager = partial(composed, case.scheme, *tensors)
    out = torch.empty_like(problem.logits)
    found: dict[str, Callable[[], object]] = {
        OURS: partial(step, problem, partial(ours, case, problem)),
        "torch eager": partial(step, problem, eager),
    }
    if compiled:
        fast: Any = torch.compile(composed, dynamic=False)
        found["torch compile"] = partial(step, problem, partial(fast, case.scheme, *tensors))
    found[COPY] = partial(out.copy_, problem.logits.detach())
    return found


def measure_case(case: Case, device: str, repeats: int) -> Iterator[Row]:
    """Correctness, then time of every provider, then the memory that ours and eager take."""
    check(case, device)
    torch.compiler.reset()
    problem = make_problem(case, device)
    timed = calls(case, problem, compiled=True)
    wait = torch.cuda.synchronize if device == "cuda" else None
    inner = 1 if case.rows * case.columns > 1 << 20 else 20
    timings = interleave(timed, repeats=repeats, inner=inner, synchronise=wait)
    op = f"{case.scheme} ce fwd+bwd"
    unit = "ms" if inner == 1 else "us"
    yield from timing_rows("losses", op, case.shape, timings, unit=unit, references=(COPY,))
    if case.rows * case.columns < 1 << 22:
        return
    gradient = problem.logits.numel() * problem.logits.element_size()
    for name in (OURS, "torch eager"):
        problem.logits.grad = None
        peak = _peak(timed[name], device)
        # Below the gradient's own size the allocator has used memory that it held already: nothing was measured.
        if peak is not None and peak >= gradient:
            yield Row("losses", op, name, case.shape, "peak beyond gradient", (peak - gradient) / 2**20, "MiB")


def _peak(call: Callable[[], object], device: str) -> int | None:
    if device != "cuda":
        return peak_extra_memory(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def measure(quick: bool) -> Iterator[Row]:
    """Every case of this machine, ours beside the peers."""
    for case in QUICK if quick else FULL:
        yield from measure_case(case, "cpu", 5 if quick else 11)
    if torch.cuda.is_available():
        for case in CUDA[2:] if quick else CUDA:
            yield from measure_case(case, "cuda", 20)


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


if __name__ == "__main__":
    raise SystemExit(run_main("losses", measure))
