"""Shards of 9 and 8 of 17 classes on two processes against the whole in float64.

Run as a script this file is one of the two processes: ``python FILE RANK RENDEZVOUS OUT``.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from obverse.engine.errors import InputError
from obverse.engine.losses import weighted_cross_entropy, weighted_cross_entropy_with_diagnostics
from obverse.engine.losses.vocab_parallel import (
    count_items,
    vocab_parallel_weighted_cross_entropy,
    vocab_parallel_weighted_cross_entropy_with_diagnostics,
)

B, T, V = 4, 6, 17
BOUNDS = (0, 9, 17)
# The reference's blocks of rows, and the kernels that auto picks.
RUNS = [
    (torch.float64, "auto"),
    (torch.float32, "reference"),
    (torch.float32, "auto"),
    (torch.bfloat16, "auto"),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "num_items": {"num_items": 31.0},
    "smoothing": {"label_smoothing": 0.2},
    "smoothing_classes_none": {"label_smoothing": 0.2, "class_weight": True, "reduction": "none"},
    "z_loss_classes": {"z_loss": 0.01, "class_weight": True},
    "all_at_once": {
        "scheme": "dimp",
        "label_smoothing": 0.1,
        "z_loss": 0.02,
        "class_weight": True,
        "reduction": "none",
    },
    "sample_weight_self": {"scheme": "sample_weight", "normalisation": "self"},
    "imp": {"scheme": "imp", "gamma": 0.7},
    "dimp": {"scheme": "dimp", "weight_clip": None, "reduction": "none"},
    "dimp_clipped": {"scheme": "dimp", "weight_clip": (0.5, 2.0), "normalisation": "batch"},
    "dimp_sequence": {"scheme": "dimp", "level": "sequence", "label_smoothing": 0.1, "class_weight": True},
    "dimp_sequence_sum": {"scheme": "dimp", "level": "sequence_sum"},
    "focal": {"scheme": "focal", "gamma": 2.0, "reduction": "none"},
    "focal_everything": {
        "scheme": "focal",
        "gamma": 0.5,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "class_weight": True,
        "sample_weight": True,
    },
    "focal_detached": {"scheme": "focal", "gamma": 2.0, "focal_gradient": "detached"},
    "packed": {"scheme": "dimp", "sample_id": True, "level": "sequence"},
    "infinite": {"infinite": True, "reduction": "none"},
    "infinite_focal": {"infinite": True, "scheme": "focal", "gamma": 2.0},
    "infinite_zero_classes": {"infinite": True, "label_smoothing": 0.1, "class_weight": True, "reduction": "none"},
    "infinite_row": {"infinite_row": True, "reduction": "none"},
    "nothing_counts": {"nothing": True},
    "far_from_zero": {"offset": 3e4, "reduction": "none"},
    "wide": {"scale": 400.0, "scheme": "dimp", "reduction": "none"},
}


def _case(name: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits [B, T, V], targets [B, T] and keywords, the same in every process."""
    rng = torch.Generator().manual_seed(sorted(CASES).index(name))
    given = dict(CASES[name])
    scale, offset = given.pop("scale", 3.0), given.pop("offset", 0.0)
    logits = torch.randn(B, T, V, generator=rng, dtype=torch.float64) * scale
    target = torch.randint(0, V, (B, T), generator=rng)
    target[0, :4] = torch.tensor([0, 8, 9, 16])  # the first and last column of each shard
    target[1, 2:4] = target[2, 5] = -100
    logits += offset
    logits[1, 2], logits[1, 3, 5] = torch.nan, torch.inf  # in rows that are left out
    logits[0, 0, 0] = 70.0 * scale + offset  # as good as certain
    logits[3, 0] = logits[3, 0].clamp(offset - 5, offset + 5)
    logits[3, 0, target[3, 0]] = 22.0 + offset  # 1 - p is about 1e-7
    if given.pop("infinite", False):
        logits[0, 2, :9] = -torch.inf  # a whole shard of a row, the target in the other
        logits[2, 0, [3, 12]] = -torch.inf
        target[2, 0] = 4
    if given.pop("infinite_row", False):
        logits[2, 0] = -torch.inf
    if given.pop("nothing", False):
        target[:] = -100
    scheme = given.get("scheme", "plain")
    rows = (3,) if given.get("sample_id") else (B,)
    if scheme in ("imp", "dimp"):
        given["log_quality"] = torch.randn(rows, generator=rng, dtype=torch.float64) - 1
    if scheme == "imp":
        given["log_diversity"] = torch.randn(rows, generator=rng, dtype=torch.float64) - 1
    if scheme == "sample_weight" or given.pop("sample_weight", False):
        given["sample_weight"] = torch.rand(B, T, generator=rng, dtype=torch.float64) * 2
    if given.get("class_weight"):
        given["class_weight"] = torch.rand(V, generator=rng, dtype=torch.float64) + 0.2
        if name.endswith("zero_classes"):
            given["class_weight"][[*range(9), 12]] = 0.0
            target[2, 0] = 15
    if given.get("sample_id"):
        given["sample_id"] = torch.randint(0, 3, (B, T), generator=rng)
    return logits, target, given


def _upstream(loss: Tensor) -> Tensor:
    """What comes from above: for rows a mix of signs and a zero."""
    if loss.ndim == 0:
        return torch.full_like(loss, -1.7)
    values = torch.linspace(-2, 3, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    values.view(-1)[3] = 0.0
    return values


def _run_rank(rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found: dict[Any, Any] = {}
    place: dict[str, Any] = {"first_class": BOUNDS[rank], "num_classes": V}
    for name in CASES:
        for dtype, kernel in RUNS:
            logits, target, given = _case(name)
            # Columns apart, as a transposed product leaves them.
            local = logits.to(dtype)[..., BOUNDS[rank] : BOUNDS[rank + 1]].requires_grad_()
            loss, seen = vocab_parallel_weighted_cross_entropy_with_diagnostics(
                local, target, kernel=kernel, **place, **given
            )
            (gradient,) = torch.autograd.grad(loss, local, _upstream(loss))
            found[name, dtype, kernel] = (loss.detach(), gradient, tuple(seen))
    logits, target, _ = _case("plain")
    # A target in no shard, unseen by the check.
    wrong = target.clone()
    wrong[0, 1] = V
    local = logits[..., BOUNDS[rank] : BOUNDS[rank + 1]]
    found["beyond"] = vocab_parallel_weighted_cross_entropy(
        local, wrong, first_class=BOUNDS[rank], num_classes=V, check=False, reduction="none"
    )
    # Rows spread over the ranks instead.
    part = slice(0, 3) if rank == 0 else slice(3, None)
    own = logits[part].clone().requires_grad_()
    share = weighted_cross_entropy(own, target[part], num_items=count_items(target[part]))
    share.backward()
    found["share"] = (share.detach(), own.grad, int(count_items(torch.full((2,), -100))))
    torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    command = [sys.executable, __file__]
    started = [
        subprocess.Popen([*command, str(rank), str(folder / "meet"), str(out)], stderr=subprocess.PIPE, text=True)
        for rank, out in enumerate(outs)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [torch.load(out) for out in outs]


@pytest.mark.parametrize(("dtype", "kernel"), RUNS)
@pytest.mark.parametrize("name", CASES)
def test_vocab_parallel_is_the_whole_loss(
    name: str, dtype: torch.dtype, kernel: str, ranks: list[dict[Any, Any]]
) -> None:
    logits, target, given = _case(name)
    # A weight has the absolute error of log p as its relative one.
    near = {"rtol": TOLERANCE[dtype] * (40 if name == "wide" else 1), "atol": TOLERANCE[dtype], "equal_nan": True}
    whole = logits.to(dtype).double().requires_grad_()
    expected, seen = weighted_cross_entropy_with_diagnostics(whole, target, kernel="reference", **given)
    expected.backward(_upstream(expected))
    assert whole.grad is not None
    for rank, found in enumerate(ranks):
        loss, gradient, diagnostics = found[name, dtype, kernel]
        assert gradient.dtype == dtype
        torch.testing.assert_close(loss.double(), expected.detach(), **near)
        mine = whole.grad[..., BOUNDS[rank] : BOUNDS[rank + 1]]
        rounded = {**near, "rtol": 2**-8} if dtype == torch.bfloat16 else near
        torch.testing.assert_close(gradient.double(), mine, **rounded)
        for field, got, want in zip(seen._fields, diagnostics, seen, strict=True):
            torch.testing.assert_close(got.to(want.dtype), want, msg=field, **near)
    torch.testing.assert_close(*(found[name, dtype, kernel][0] for found in ranks), rtol=0, atol=0, equal_nan=True)


def test_vocab_parallel_cases_reach_what_they_name(ranks: list[dict[Any, Any]]) -> None:
    """The comparison above would hold for rows that never were infinite or clipped, too."""
    exact = {name: ranks[0][name, torch.float64, "auto"] for name in CASES}
    assert torch.isfinite(exact["infinite"][0]).all()
    assert torch.isneginf(_case("infinite")[0]).any()
    assert exact["infinite_row"][0].isnan().sum() == 1
    assert {-1, 1} <= set(exact["dimp_clipped"][2][3].flatten().tolist())
    for dtype, kernel in RUNS:
        certain = ranks[0]["plain", dtype, kernel][2][1][0, 0]
        assert -1e-60 < float(certain) <= 0  # log p of a row whose p rounds to 1
        logits, target, _ = _case("plain")
        z, y = logits[3, 0].to(dtype).double(), int(target[3, 0])
        log_p = -(z[torch.arange(V) != y] - z[y]).exp().sum().log1p()
        assert -1e-5 < float(log_p) < -1e-9
        assert float(ranks[1]["plain", dtype, kernel][2][1][3, 0]) == pytest.approx(float(log_p), rel=1e-5)
    assert float(exact["plain"][2][1][0, 0]) < 0
    assert float(exact["nothing_counts"][0]) == 0.0


def test_vocab_parallel_target_in_no_shard_is_nan(ranks: list[dict[Any, Any]]) -> None:
    for found in ranks:
        assert found["beyond"].isnan().flatten().nonzero().flatten().tolist() == [1]


def test_count_items_joins_rows_on_two_ranks(ranks: list[dict[Any, Any]]) -> None:
    logits, target, _ = _case("plain")
    whole = logits.clone().requires_grad_()
    expected = weighted_cross_entropy(whole, target, kernel="reference")
    expected.backward()
    assert whole.grad is not None
    torch.testing.assert_close(ranks[0]["share"][0] + ranks[1]["share"][0], expected.detach())
    torch.testing.assert_close(torch.cat([found["share"][1] for found in ranks]), whole.grad)
    assert [found["share"][2] for found in ranks] == [1, 1]


def test_vocab_parallel_alone_and_what_it_refuses() -> None:
    logits, target, _ = _case("plain")
    alone = vocab_parallel_weighted_cross_entropy(logits, target, first_class=0, num_classes=V)
    torch.testing.assert_close(alone, weighted_cross_entropy(logits, target, kernel="reference"))
    for first, shown in ((1, r"\[1, 10\)"), (-1, r"\[-1, 8\)"), (10, r"\[10, 19\)")):
        with pytest.raises(InputError, match=shown):
            vocab_parallel_weighted_cross_entropy(logits[..., :9], target, first_class=first, num_classes=V)
    place = {"first_class": 0, "num_classes": V}
    with pytest.raises(InputError, match="soft"):
        vocab_parallel_weighted_cross_entropy(logits, logits.softmax(-1), **place)
    with pytest.raises(InputError, match="class_weight"):
        vocab_parallel_weighted_cross_entropy(logits, target, class_weight=torch.ones(9), **place)
    with pytest.raises(ValueError, match="float64"):
        vocab_parallel_weighted_cross_entropy(logits, target, kernel="cpp", **place)
    with pytest.raises(ValueError, match="log_quality"):
        vocab_parallel_weighted_cross_entropy(logits, target, scheme="dimp", **place)
    with pytest.raises(InputError, match="0 to 16"):
        vocab_parallel_weighted_cross_entropy(logits, target.clone().fill_(V), **place)


def test_vocab_parallel_works_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target, given = _case("all_at_once")
    place = {"first_class": 0, "num_classes": V}
    found = []
    for block in (1, 5 * V, 1 << 20):
        monkeypatch.setattr("obverse.engine.losses.vocab_parallel._CPU_BLOCK", block)
        z = logits.clone().requires_grad_()
        vocab_parallel_weighted_cross_entropy(z, target, **place, **given).sum().backward()
        found.append(z.grad)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], rtol=0, atol=0)


if __name__ == "__main__":
    _run_rank(int(sys.argv[1]), *sys.argv[2:])
