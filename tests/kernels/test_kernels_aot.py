"""Every kernel compiled ahead of time to a cubin, with no GPU: registers, spills, shared memory, wide loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from obverse.kernels.launch import row_blocks, triton_installed, triton_interprets
from obverse.kernels.weight_rule import SCHEMES

Resources = Callable[[Any], tuple[int, int, str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton_installed(), reason="Triton is not installed"),
]

# 227 KiB: what one block may use on sm_90 (163 KiB on sm_80).
SHARED_LIMIT = {80: 166_912, 90: 232_448}


def _compile(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], sm: int, warps: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
        elif name in ("gamma", "log_low", "log_high", "smoothing"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
    # What the launcher finds at run time for a row length divisible by 16: aligned pointers and strides.
    # Without it the compiler may not assume that four neighbours can be loaded at once.
    aligned = {*pointers, "row_stride", "num_columns"}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in aligned and name not in constants
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": warps})


def _check(compiled: Any, sm: int, resources: Resources, *, wide: bool) -> None:
    registers, stack, listing = resources(compiled)
    assert registers <= 128, f"{registers} registers a thread leave less than half of the SM's warps"
    assert stack == 0, f"{stack} bytes of stack"
    assert not re.search(r"\b(LDL|STL)\b", listing), "the kernel spills registers"
    assert compiled.metadata.shared <= SHARED_LIMIT[sm]
    if wide:
        assert re.search(r"\bLDG\.E\S*\.128", listing), "no 128-bit loads"


@pytest.fixture(autouse=True)
def _compiles_here() -> None:
    if triton_interprets():
        pytest.skip("this process interprets; it can't compile")


@pytest.mark.parametrize("columns", [16, 128256])
@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_kernels_forward_compiles(scheme: str, sm: int, columns: int, resources: Resources) -> None:
    from obverse.kernels.weighted_ce import _forward_kernel

    blocks = row_blocks(columns)
    pointers = {
        "logits": "*bf16",
        "target": "*i64",
        "sample_weight": "*fp32",
        "log_quality": "*fp32",
        "log_diversity": "*fp32",
        "rows_out": "*fp32",
        "clipped_out": "*i8",
    }
    constants = {
        "SCHEME": SCHEMES.index(scheme),
        "FOCAL_DETACHED": False,
        "HAS_SAMPLE_WEIGHT": scheme != "plain",
        "SMOOTH": True,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
    }
    compiled = _compile(_forward_kernel, pointers, constants, sm, blocks.num_warps)
    _check(compiled, sm, resources, wide=columns > 1000)


@pytest.mark.parametrize("dtype", ["*bf16", "*fp16", "*fp32"])
@pytest.mark.parametrize("columns", [16, 128256])
@pytest.mark.parametrize("sm", [80, 90])
def test_kernels_backward_compiles(dtype: str, sm: int, columns: int, resources: Resources) -> None:
    from obverse.kernels.weighted_ce import _backward_kernel

    blocks = row_blocks(columns)
    pointers = {"logits": dtype, "target": "*i64", "rows_in": "*fp32", "upstream": "*fp32", "gradient": dtype}
    constants = {"ROWS": blocks.rows, "COLUMNS": blocks.columns}
    compiled = _compile(_backward_kernel, pointers, constants, sm, blocks.num_warps)
    _check(compiled, sm, resources, wide=columns > 1000)


def test_kernels_spill_check_can_fail(resources: Resources) -> None:
    """The check sees a spill where there is one: a row of 65,536 columns held by four warps."""
    from obverse.kernels.weighted_ce import _backward_kernel

    pointers = {"logits": "*bf16", "target": "*i64", "rows_in": "*fp32", "upstream": "*fp32", "gradient": "*bf16"}
    compiled = _compile(_backward_kernel, pointers, {"ROWS": 1, "COLUMNS": 65536}, 90, 4)
    with pytest.raises(AssertionError):
        _check(compiled, 90, resources, wide=False)
