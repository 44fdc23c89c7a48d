"""The Triton kernels' own functions against float64 truth, on fresh random inputs.

Run in Triton's interpreter by `test_kernels_interpreter` (in a process of its own) and on CUDA with ``-m gpu``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from obverse.kernels import reference
from obverse.kernels.launch import BlockSizes, triton_installed, triton_interprets
from obverse.kernels.weight_rule import RowInputs, WeightRule, make_rule

pytestmark = pytest.mark.skipif(not triton_installed(), reason="Triton is not installed")

# Rows and columns: one column, fewer than a tile has, no multiple of anything. The interpreter takes 10 ms a tile.
SIZES = {"narrow": [(1, 1), (7, 2), (5, 3), (67, 17), (3, 1000), (1, 4099)], "wide": [(2, 3), (3, 1030)]}
CASES = [
    ("plain", False, False),
    ("sample_weight", False, True),
    ("imp", False, False),
    ("dimp", False, False),
    ("focal", False, False),
    ("focal", True, False),
    ("plain", False, True),
    ("imp", False, True),
    ("dimp", False, True),
]


def _devices() -> list[Any]:
    found: list[Any] = [pytest.param("cuda", marks=pytest.mark.gpu)]
    if os.environ.get("TRITON_INTERPRET") == "1" and triton_installed() and triton_interprets():
        found.append(pytest.param("cpu", id="interpreter"))
    return found


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def ce(device: str) -> Any:
    from obverse.kernels import weighted_ce

    return weighted_ce


@pytest.fixture(params=["narrow", "wide"])
def blocks(request: pytest.FixtureRequest, ce: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows whole in a tile, or a tile of 512 columns that walks over them (1,030 columns: three times)."""
    if request.param == "wide":
        monkeypatch.setattr(ce, "row_blocks", lambda *_, **__: BlockSizes(64, 8, 4, wide=True))
        monkeypatch.setattr(ce, "one_program_blocks", lambda *_: None)
    return str(request.param)


class Problem(NamedTuple):
    logits: Tensor
    target: Tensor
    rule: WeightRule
    inputs: RowInputs
    upstream: Tensor

    def truth(self, upstream: Tensor | None = None) -> tuple[reference.RowLosses, Tensor]:
        """Rows and gradient in float64."""
        z = self.logits.detach().double().requires_grad_()
        given = {name: None if v is None else v.double() for name, v in self.inputs._asdict().items()}
        rows = reference.row_losses(z, self.target, self.rule, **given)
        upstream = self.upstream if upstream is None else upstream
        (gradient,) = torch.autograd.grad((rows.loss * upstream.double()).sum(), z)
        return rows, gradient

    def scales(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a row's log-probabilities, loss and gradient (times upstream) are made of, at most."""
        bare = self._replace(inputs=self.inputs._replace(class_weight=None)).truth()[0]
        mass = self.target.double().sum(1) if self.target.is_floating_point() else 1.0
        weight = (bare.weight / mass).abs()
        classes = 1.0 if self.inputs.class_weight is None else 1.0 + self.inputs.class_weight.abs().max().double()
        reach = self.logits.abs().amax(1).double() + 1
        loss = weight * classes * reach + self.truth()[0].loss.abs()
        slope = weight * classes * (1 + 2 * self.rule.z_loss * reach)
        return reach, loss, ((slope + loss * self.rule.gamma) * reach * self.upstream.abs().double())[:, None]


@pytest.fixture
def problem(
    device: str,
    rng: torch.Generator,
    weights_for: Callable[..., dict[str, Tensor]],
    rows_for: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> Callable[..., Problem]:
    def make(
        n: int,
        v: int,
        scheme: Any = "plain",
        *,
        soft: bool = False,
        classes: bool = False,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> Problem:
        logits, target, upstream = rows_for(n, v, device)
        if soft:  # rows that sum to anything, with zeros in them
            target = torch.randn(n, v, generator=rng).exp().to(device)
            target = target / target.sum(1, keepdim=True) * (0.5 + torch.rand(n, 1, generator=rng)).to(device)
            target = target * (torch.rand(n, v, generator=rng) < 0.8).to(device) + 1e-3
            target = target.to(dtype)
        given = weights_for(n, scheme, device)
        if classes:
            class_weight = 2 * torch.rand(v, generator=rng)
            class_weight[::3] = 0.0
            given["class_weight"] = class_weight.to(device)
        rule = make_rule(scheme, weight_clip=(0.1, 10), **{"gamma": 1.3, **settings})
        return Problem(logits.to(dtype), target, rule, RowInputs(**given), upstream)

    return make


def _close(got: Tensor, truth: Tensor, allowed: Tensor) -> None:
    error = (got.double() - truth.double()).abs()
    assert not error.isnan().any()
    worst = (error / (allowed.double() + 1e-30)).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"{worst:.3g} times the allowed error; seen {error.max().item():.3g}"


def _check_fields(problem: Problem, fields: Tensor, clipped: Tensor) -> None:
    truth, _ = problem.truth()
    reach, loss, _ = problem.scales()
    _close(fields[0], truth.loss, 3e-6 * loss)
    _close(fields[1], truth.weight, 3e-6 * loss)
    _close(fields[2], truth.log_prob, 3e-6 * reach)
    _close(fields[3], truth.lse, 2e-6 * reach)
    assert not fields[4:].isnan().any()
    assert torch.equal(clipped, truth.clipped)


def _check_all(ce: Any, problem: Problem) -> None:
    """Every function, on poisoned memory, in place and not."""
    _, gradient = problem.truth()
    allowed = 5e-6 * problem.scales()[2]
    arguments = problem[1:4]
    fields, clipped = ce.forward_rows(problem.logits, *arguments)
    _check_fields(problem, fields, clipped)
    _close(ce.backward_rows(problem.logits, *arguments, fields, problem.upstream), gradient, allowed)
    own = problem.logits.clone()
    assert ce.backward_rows(own, *arguments, fields, problem.upstream, out=own) is own
    _close(own, gradient, allowed)
    out = torch.full_like(problem.logits, float("nan"))
    _check_fields(problem, *ce.fused_rows(problem.logits, *arguments, problem.upstream, out))
    _close(out, gradient, allowed)
    own = problem.logits.clone()
    _check_fields(problem, *ce.fused_rows(own, *arguments, problem.upstream, own))
    assert torch.equal(own, out)
    _check_mean(ce, problem)


def _check_mean(ce: Any, problem: Problem, denominator: Tensor | None = None) -> None:
    n = len(problem.logits)
    truth, _ = problem.truth()
    whole = denominator.double() if denominator is not None else truth.counted.sum().clamp_min(1).double()
    even = problem._replace(upstream=torch.full((n,), 1 / whole.item(), device=whole.device))
    own = problem.logits.clone()
    total, fields, clipped = ce.fused_mean(own, *problem[1:4], denominator, own)
    assert total.shape == ()
    assert total.dtype == torch.float32
    _, loss, slope = even.scales()
    _close(total, truth.loss.sum() / whole, 3e-6 * loss.sum() / whole)
    _check_fields(problem, fields, clipped)
    _close(own, even.truth()[1], 5e-6 * slope)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN: a place that is never written would show."""
    plain = torch.empty

    def make(*args: Any, **kwargs: Any) -> Tensor:
        made = plain(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(torch, "empty", make)


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("scheme", "detached", "soft"), CASES)
def test_kernels_triton_matches_truth(
    ce: Any, blocks: str, problem: Any, scheme: str, detached: bool, soft: bool, extras: bool, poisoned: None
) -> None:
    settings = {"classes": True, "label_smoothing": 0.1, "z_loss": 0.01} if extras else {}
    for n, v in SIZES[blocks]:
        _check_all(ce, problem(n, v, scheme, soft=soft, focal_detached=detached, **settings))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alone", ["classes", "label_smoothing", "z_loss"])
def test_kernels_triton_each_extra_alone(ce: Any, blocks: str, problem: Any, alone: str, soft: bool) -> None:
    value = {"classes": True, "label_smoothing": 0.2, "z_loss": 0.1}[alone]
    for n, v in [(6, 3), (2, 1030)]:
        _check_all(ce, problem(n, v, "dimp", soft=soft, **{alone: value}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("soft", [False, True])
def test_kernels_triton_low_precision(ce: Any, blocks: str, problem: Any, dtype: torch.dtype, soft: bool) -> None:
    """Losses as for float32; a gradient within the one rounding (the interpreter truncates) of its own."""
    given = problem(6, 1030, "plain", soft=soft, dtype=dtype)
    _, gradient = given.truth()
    allowed = torch.finfo(dtype).eps * gradient.abs() + 5e-6 * given.scales()[2] + 1e-7
    fields, clipped = ce.forward_rows(given.logits, *given[1:4])
    _check_fields(given, fields, clipped)
    _close(ce.backward_rows(given.logits, *given[1:4], fields, given.upstream), gradient, allowed)
    own = given.logits.clone()
    ce.fused_rows(own, *given[1:4], given.upstream, own)
    assert own.dtype == dtype
    _close(own, gradient, allowed)


def test_kernels_triton_strides(ce: Any, blocks: str, problem: Any) -> None:
    """Logits, soft targets and gradients with room between rows, which nobody touches; upstream of any stride."""
    for soft in (False, True):
        given = problem(5, 35, "imp", soft=soft, label_smoothing=0.1)
        roomy = torch.full((5, 43), 7.0, device=given.logits.device)
        logits = roomy[:, 3:38].copy_(given.logits)
        target = torch.cat([given.target] * 2, dim=1)[:, :35] if soft else given.target
        upstream = torch.stack([given.upstream] * 3, dim=1)[:, 1]
        _, gradient = given.truth()
        allowed = 5e-6 * given.scales()[2]
        fields, _ = ce.forward_rows(logits, target, *given[2:4])
        _close(ce.backward_rows(logits, target, *given[2:4], fields, upstream), gradient, allowed)
        ce.fused_rows(logits, target, *given[2:4], upstream, logits)
        _close(logits, gradient, allowed)
        ce.scale_(logits, torch.tensor(2.0, device=logits.device))
        _close(logits, 2 * gradient, 2 * allowed)
        assert bool((roomy[:, :3] == 7).all())
        assert bool((roomy[:, 38:] == 7).all())
        same = given._replace(logits=given.logits[:1].expand(5, 35), upstream=given.upstream[:1].expand(5))
        out = torch.full((5, 35), float("nan"), device=logits.device)
        ce.fused_rows(*same[:5], out)
        _close(out, same.truth()[1], 5e-6 * same.scales()[2])


def test_kernels_triton_ignored_rows_hide_everything(ce: Any, blocks: str, problem: Any) -> None:
    given = problem(6, 600, "focal", label_smoothing=0.1, ignore_index=9)
    logits, target, upstream = given.logits.clone(), given.target.clone(), given.upstream.clone()
    target[[1, 4]], target[[0, 2, 3, 5]] = 9, 8
    logits[1], logits[4, 0], upstream[[1, 4]] = float("nan"), float("inf"), float("nan")
    fields, clipped = ce.forward_rows(logits, target, *given[2:4])
    for gradient in (ce.backward_rows(logits, target, *given[2:4], fields, upstream), logits.clone()):
        if gradient.isnan().any():
            ce.fused_rows(gradient, target, *given[2:4], upstream, gradient)
        assert bool(gradient.isfinite().all())
        assert not gradient[[1, 4]].any()
        assert bool(gradient[2].any())
    assert not fields[:4, [1, 4]].any()
    assert not clipped[[1, 4]].any()
    target[:] = 9
    total, fields, _ = ce.fused_mean(logits, target, *given[2:4], None, logits)
    assert total.item() == 0.0
    assert not logits.any()
    assert not fields[:4].any()


def test_kernels_triton_no_rows(ce: Any, problem: Any, poisoned: None) -> None:
    given = problem(0, 5)
    assert ce.forward_rows(*given[:4])[0].shape == (9, 0)
    total, fields, clipped = ce.fused_mean(*given[:4], None, given.logits)
    assert total.item() == 0.0
    assert (fields.shape, clipped.shape) == ((9, 0), (0,))
    assert ce.backward_rows(*given[:4], fields, given.upstream).shape == (0, 5)
    ce.scale_(given.logits, torch.tensor(2.0))


@pytest.mark.parametrize("target", [-1, 600, 1 << 40])
def test_kernels_triton_bad_target_makes_its_row_nan(ce: Any, blocks: str, problem: Any, target: int) -> None:
    for settings in ({}, {"classes": True, "label_smoothing": 0.1}):
        given = problem(3, 600, "sample_weight", **settings)
        given.target[:] = torch.tensor([4, target, 5])
        fields, _ = ce.forward_rows(*given[:4])
        own = given.logits.clone()
        ce.fused_rows(own, *given[1:5], own)
        for gradient in (own, ce.backward_rows(*given[:4], fields, given.upstream)):
            assert gradient.isnan().all(1).tolist() == [False, True, False]
        for field in (0, 1, 2, 6, 7):
            assert fields[field].isnan().tolist() == [False, True, False]
        assert not fields[3].isnan().any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # inf - inf, as numpy sees it under the interpreter
@pytest.mark.parametrize("soft", [False, True])
def test_kernels_triton_infinite_logits(ce: Any, blocks: str, problem: Any, soft: bool) -> None:
    """-inf is a class of no probability, and costs infinity where the target is; +inf and nothing but -inf are NaN."""
    given = problem(5, 600, "plain")
    logits, target = given.logits, given.target
    logits[0, ::2], logits[1, 7], logits[2, 3], logits[3] = -torch.inf, -torch.inf, torch.inf, -torch.inf
    target[:] = torch.tensor([1, 7, 5, 5, 5])
    if soft:
        target = torch.nn.functional.one_hot(target, 600).float()
    given = given._replace(target=target)
    fields, _ = ce.forward_rows(*given[:4])
    truth, gradient = given.truth()
    own = logits.clone()
    ce.fused_rows(own, *given[1:5], own)
    assert fields[0, 1].item() == torch.inf
    assert fields[0].isnan().tolist() == [False, False, True, True, False]
    for row in (0, 4):
        _close(fields[0, row], truth.loss[row], 1e-5 * truth.loss[row].abs())
        _close(own[row], gradient[row], 1e-5 * torch.ones_like(gradient[row]))
    assert bool(own[2:4].isnan().all())


@pytest.mark.parametrize("soft", [False, True])
def test_kernels_triton_keeps_digits_of_large_logits(ce: Any, blocks: str, problem: Any, soft: bool) -> None:
    """Offsets of 1e4, -log p of 95, a target that is nearly certain, and a maximum that rises from tile to tile."""
    given = problem(6, 1537, "dimp", gamma=1.0)
    ramp = torch.linspace(-3, 3, 1537, device=given.logits.device)
    logits = torch.stack([ramp, 5 * ramp.flip(0), 1e4 + ramp, -1e4 + 2 * ramp, ramp, ramp])
    logits[4, 600], logits[5, 600] = 95.0, 30.0
    target = torch.tensor([17, 1500, 512, 1023, 0, 600], device=logits.device)
    if soft:
        target = torch.nn.functional.one_hot(target, 1537).float()
    given = given._replace(logits=logits, target=target, inputs=RowInputs(None, given.inputs.log_quality))
    truth, gradient = given.truth()
    fields, clipped = ce.forward_rows(*given[:4])
    # One column may be all of a soft target, but is not known to be: no digits of its own for what 1 - p has lost.
    floor = 1e-6 * truth.weight if soft else torch.zeros_like(truth.weight)
    _close(fields[0], truth.loss, 1e-5 * truth.loss.abs() + floor)
    assert torch.equal(clipped, truth.clipped)
    ce.fused_rows(logits, *given[1:5], logits)
    floor *= given.upstream.abs()
    _close(logits, gradient, (1e-5 * gradient.abs().amax(1) + floor)[:, None])


def test_kernels_triton_target_at_every_edge_of_a_tile(ce: Any, blocks: str, problem: Any) -> None:
    edges = torch.tensor([0, 7, 8, 511, 512, 519, 1023, 1024, 1029])
    given = problem(len(edges), 1030, "plain")
    given.target.copy_(edges)
    given.logits[range(len(edges)), edges] = 16.0  # likely enough to be missed where it is miscounted
    given = given._replace(upstream=torch.ones_like(given.upstream))
    _check_all(ce, given)


def test_kernels_triton_denominators(ce: Any, blocks: str, problem: Any) -> None:
    for soft in (False, True):
        given = problem(4, 16, "imp", soft=soft)
        _check_mean(ce, given, torch.tensor([2.5], device=given.logits.device))
        total, _, _ = ce.fused_mean(*given[:4], torch.zeros((), device=given.logits.device), given.logits)
        assert total.item() == 0.0
        assert not given.logits.any()


def test_kernels_triton_mean_counts_and_sums_past_one_tile(
    ce: Any, blocks: str, problem: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(ce, "_COUNT", 16)
    _check_mean(ce, problem(35 if blocks == "wide" else 1100, 3, "sample_weight"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_triton_scale(ce: Any, device: str, rng: torch.Generator, dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr(ce, "_SCALE_PROGRAMS", 3)
    for shape in ((1, 1), (3, 5), (5, 4099)):
        gradient = torch.randn(shape, generator=rng).to(device, dtype)
        gradient[0, 0] = float("nan")
        for factor in (1.0, -3.0, 0.0):
            before = gradient.clone()
            assert ce.scale_(gradient, torch.tensor([factor], device=device)) is gradient
            # The interpreter truncates where the hardware rounds.
            ulp = torch.finfo(dtype).eps if factor == -3.0 else 0.0
            torch.testing.assert_close(gradient, before * factor, rtol=ulp, atol=0.0, equal_nan=True)


def test_kernels_triton_repeats_bit_for_bit(ce: Any, blocks: str, problem: Any) -> None:
    """With small blocks and large on a GPU: in place as well as not, whatever the order of the programs."""
    for n, v in [(5, 1003)] if triton_interprets() else [(4096, 16), (999, 1000), (300, 9001), (300, 128256)]:
        given = problem(n, v, "dimp")
        seen = []
        for _ in range(2 if triton_interprets() else 10):
            own, out = given.logits.clone(), torch.empty_like(given.logits)
            fields, _ = ce.fused_rows(given.logits, *given[1:5], out)
            again, _ = ce.fused_rows(own, *given[1:5], own)
            assert torch.equal(own, out)
            assert torch.equal(fields, again)
            total, _, _ = ce.fused_mean(own.copy_(given.logits), *given[1:4], None, own)
            seen.append((fields, out, total, own))
        for others in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], others, strict=True))


@pytest.mark.gpu
def test_kernels_triton_small_mean_takes_one_launch_and_never_waits(device: str, ce: Any, problem: Any) -> None:
    """[4096, 16] forward and backward: two kernels in all, and the host stops for neither."""
    if device != "cuda":
        pytest.skip("the interpreter launches nothing")
    given = problem(4096, 16, "dimp", dtype=torch.bfloat16)
    large = problem(600, 9001, "dimp", label_smoothing=0.1, z_loss=0.01, classes=True)
    factor = torch.tensor(0.5, device=device)

    def step(one: Problem) -> None:
        own = one.logits.clone()
        ce.fused_mean(own, *one[1:4], None, own)
        ce.scale_(own, factor)

    for one in (given, large):  # compiles, which may wait
        step(one)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for one in (given, large):
            step(one)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    own = given.logits.clone()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ce.fused_mean(own, *given[1:4], None, own)
        ce.scale_(own, factor)
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if str(event.device_type).endswith("CUDA")]
    assert len(on_device) == 2, on_device


@pytest.mark.gpu
def test_kernels_triton_beyond_two_to_the_31_logits(device: str, ce: Any) -> None:
    """Rows whose logits lie past what 32 bits address: the last as good as the first."""
    if device != "cuda":
        pytest.skip("too large for the interpreter")
    num_rows, num_columns = 17_000, 128_256
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("needs 14 GB of GPU memory")
    logits = torch.randn(num_rows, num_columns, device=device, dtype=torch.bfloat16)
    target = torch.randint(0, num_columns, (num_rows,), device=device)
    upstream = torch.randn(num_rows, device=device)
    rule = make_rule(label_smoothing=0.1)
    edges = torch.tensor([0, 1, 16_743, 16_744, num_rows - 1], device=device)
    few = Problem(logits[edges], target[edges], rule, RowInputs(), upstream[edges])
    truth, gradient = few.truth()
    allowed = 2.0**-7 * gradient.abs() + 5e-6 * few.scales()[2]
    fields, _ = ce.forward_rows(logits, target, rule, RowInputs())
    _close(fields[0, edges], truth.loss, 3e-6 * few.scales()[1])
    _close(ce.backward_rows(logits, target, rule, RowInputs(), fields, upstream)[edges], gradient, allowed)
    ce.fused_rows(logits, target, rule, RowInputs(), upstream, logits)
    _close(logits[edges], gradient, allowed)
    before = logits[edges]
    ce.scale_(logits, torch.tensor(2.0, device=device))
    assert torch.equal(logits[edges], 2 * before)
