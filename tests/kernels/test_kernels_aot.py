"""Every kernel compiled ahead of time to a cubin, with no GPU: registers, spills, shared memory, wide loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from obverse.kernels.launch import one_program_blocks, row_blocks, tile_blocks, triton_installed, triton_interprets
from obverse.kernels.weight_rule import SCHEMES

Resources = Callable[[Any], tuple[int, int, str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton_installed(), reason="Triton is not installed"),
]

ARCHITECTURES = (80, 90, 100, 120)
# What one block may use: 227 KiB on sm_90 and 100, 163 on sm_80, 99 on sm_120.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
FLOATS = ("gamma", "log_low", "log_high", "smoothing", "z_loss")
WEIGHTS = ("sample_weight", "log_quality", "log_diversity", "class_weight")


def _compile(
    name: str, constants: dict[str, Any], sm: int = 90, warps: int = 4, *, dtype: str = "*bf16", soft: bool = False
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from obverse.kernels import weighted_ce_kernels

    kernel = getattr(weighted_ce_kernels, name)
    pointers = {
        **dict.fromkeys((*WEIGHTS, "fields", "upstream", "denominator", "denominator_out"), "*fp32"),
        **dict.fromkeys(("loss", "total_out", "factor"), "*fp32"),
        "logits": dtype,
        "gradient": dtype,
        "target": dtype if soft else "*i64",
        "clipped_out": "*i8",
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "fp32" if name in FLOATS else "i32")
        for name in kernel.arg_names
    }
    # What the launcher finds at run time for a row length divisible by 16: aligned pointers and strides.
    # Without it the compiler may not assume that four neighbours can be loaded at once.
    aligned = {*pointers, "row_stride", "target_stride", "gradient_stride", "num_columns"}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in aligned and name not in constants
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": warps})


def _constants(scheme: str, blocks: Any, *, soft: bool = False, extras: bool = False, **more: Any) -> dict[str, Any]:
    """As the launcher gives them: an input that a scheme does not take is None."""
    used = {"imp": WEIGHTS[:3], "dimp": WEIGHTS[:2]}.get(scheme, WEIGHTS[: scheme != "plain"])
    if extras:
        used = (*used, "class_weight")
    return {
        **{name: None for name in WEIGHTS if name not in used},
        "SOFT": soft,
        "SCHEME": SCHEMES.index(scheme),
        "FOCAL_DETACHED": False,
        "HAS_SAMPLE_WEIGHT": scheme != "plain",
        "HAS_CLASS_WEIGHT": extras,
        "SMOOTH": extras,
        "WIDE": blocks.wide,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "DIVIDE": False,
        "HAS_DENOMINATOR": False,
        "COUNT": 4096,
        **more,
    }


def _check(compiled: Any, sm: int, resources: Resources, *, registers: int = 128, wide: bool = True) -> str:
    used, stack, listing = resources(compiled)
    assert used <= registers, f"{used} registers a thread"
    # ptxas may lay down a value or two around a loop, once a thread. Inside one it would have to take many.
    assert stack <= 16, f"{stack} bytes of stack"
    assert len(re.findall(r"\b(?:LDL|STL)\b", listing)) <= 6, "the kernel spills registers"
    assert compiled.metadata.shared <= SHARED_LIMIT[sm]
    if wide:
        assert re.search(r"\bLDG\.E\S*\.128", listing), "no 128-bit loads"
    return listing


@pytest.fixture(autouse=True)
def _compiles_here() -> None:
    if triton_interprets():
        pytest.skip("this process interprets; it can't compile")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kernels_fused_compiles(scheme: str, resources: Resources) -> None:
    """Every scheme at a large vocabulary; one architecture after the other, and each other size, in turn."""
    place = SCHEMES.index(scheme)
    for columns in (16, 1000, 8192, 32_000, 128_256):
        blocks = row_blocks(columns, 2)
        sm = 90 if columns > 100_000 else ARCHITECTURES[place % 4]
        compiled = _compile("fused_kernel", _constants(scheme, blocks), sm, blocks.num_warps)
        # 32 warps with more than 64 registers could not be started at all.
        _check(compiled, sm, resources, registers=64 if blocks.num_warps == 32 else 128)


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_kernels_forward_and_fused_compile_with_every_extra(sm: int, resources: Resources) -> None:
    for columns, size in ((16, 2), (1000, 4), (128_256, 2), (128_256, 4)):
        for soft in (False, True):
            scheme = "imp" if soft else "focal"
            blocks = row_blocks(columns, size, many_sums=True)
            constants = _constants(scheme, blocks, soft=soft, extras=True)
            for name in ("forward_kernel", "fused_kernel") if size == 2 else ("fused_kernel",):
                compiled = _compile(
                    name, constants, sm, blocks.num_warps, dtype={2: "*bf16", 4: "*fp32"}[size], soft=soft
                )
                limit = 64 if blocks.num_warps == 32 else 168
                _check(compiled, sm, resources, registers=limit, wide=columns != 1000)


def test_kernels_fused_large_vocabulary_reads_wide_and_one_row_an_sm(resources: Resources) -> None:
    """What its speed rests on. Both passes read, and the second writes, 128 bits a thread; the first pass asks the
    second-level cache to keep the row and the second to let it go; a second program has no room on the SM, or
    twice the rows would be in work than the cache holds; and between the passes are few barriers, in them none.
    """
    blocks = row_blocks(128_256, 2)
    assert blocks.wide
    compiled = _compile("fused_kernel", _constants("dimp", blocks), 90, blocks.num_warps)
    listing = _check(compiled, 90, resources, registers=64)
    used, stack, _ = resources(compiled)
    assert used > 32
    assert stack == 0
    assert len(re.findall(r"LDG\.E\.EL\.128", listing)) == len(re.findall(r"LDG\.E\.EF\.128", listing)) == 2
    assert len(re.findall(r"STG\.E\.EF\.128", listing)) == 2
    assert len(re.findall(r"BAR\.SYNC", listing)) <= 8
    order = re.findall(r"BAR\.SYNC|LDG\.E\.E[LF]\.128|STG\.E\.EF\.128", listing)
    assert order[:2] == ["LDG.E.EL.128"] * 2
    assert order[-4:] == ["LDG.E.EF.128"] * 2 + ["STG.E.EF.128"] * 2
    assert set(order[2:-4]) == {"BAR.SYNC"}


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_kernels_backward_and_scale_compile(sm: int, resources: Resources) -> None:
    for columns, dtype in ((16, "*fp16"), (128_256, "*bf16"), (128_256, "*fp32")):
        blocks = tile_blocks(columns)
        for soft, extras in ((False, False), (False, True), (True, True))[dtype == "*fp32" :]:
            constants = _constants("plain", blocks, soft=soft, extras=extras)
            compiled = _compile("backward_kernel", constants, sm, blocks.num_warps, dtype=dtype, soft=soft)
            _check(compiled, sm, resources)
    blocks = tile_blocks(1 << 30)
    _check(_compile("scale_kernel", {"COLUMNS": blocks.columns}, sm, blocks.num_warps), sm, resources)


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_kernels_small_mean_compiles(sm: int, resources: Resources) -> None:
    for columns, scheme, soft, extras in (
        (2, "imp", False, False),
        (16, "dimp", False, False),
        (16, "focal", False, True),
        (200, "imp", True, True),
        (1000, "focal", False, True),
    ):
        blocks = one_program_blocks(100_000 // columns, columns)
        assert blocks is not None
        constants = _constants(scheme, blocks, soft=soft, extras=extras)
        compiled = _compile("mean_kernel", constants, sm, blocks.num_warps, soft=soft)
        limit = 64 if blocks.num_warps == 32 else 128
        _check(compiled, sm, resources, registers=limit, wide=columns % 16 == 0)
    for name in ("count_kernel", "total_kernel"):
        compiled = _compile(name, {"SOFT": False, "COUNT": 4096}, sm, 16)
        _check(compiled, sm, resources, wide=False)


@pytest.mark.parametrize("soft", [False, True])
def test_kernels_compile_where_the_launcher_puts_constants(soft: bool) -> None:
    """It makes a constant of every integer argument that is 1, which the interpreter does not."""
    ones = ("num_rows", "num_columns", "row_stride", "target_stride", "upstream_stride", "gradient_stride")
    constants = {**dict.fromkeys((*ones, "ignore_index"), 1), "denominator": None}
    for name in ("forward_kernel", "fused_kernel", "backward_kernel", "mean_kernel", "count_kernel", "scale_kernel"):
        given = {**_constants("dimp", row_blocks(1, 2), soft=soft, extras=not soft), **constants}
        assert _compile(name, given, soft=soft).asm["cubin"]
    assert _compile("total_kernel", {"num_rows": 1, "COUNT": 4096}).asm["cubin"]


def test_kernels_spill_check_can_fail(resources: Resources) -> None:
    """The check sees a spill where there is one: a row of 65,536 columns held by four warps."""
    constants = {**_constants("plain", tile_blocks(16)), "ROWS": 1, "COLUMNS": 65536}
    compiled = _compile("backward_kernel", constants)
    with pytest.raises(AssertionError):
        _check(compiled, 90, resources, registers=255, wide=False)
