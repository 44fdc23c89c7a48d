"""The exact join's kernel compiled ahead of time to a cubin, with no GPU: registers, spills, its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from obverse.kernels.launch import triton_installed, triton_interprets

Resources = Callable[[Any], tuple[int, int, str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton_installed(), reason="Triton is not installed"),
]

# What one block may use: 227 KiB on sm_90 and 100, 163 on sm_80, 99 on sm_120.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}


def _compile(sm: int, precision: str, *, own: bool = True, dim: int = 384) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from obverse.kernels.neighbours_kernels import emit_pairs_kernel as kernel

    whole = precision == "int8"
    element, sums = ("*i8", "*i32") if whole else ("*fp16", "*fp32")
    constants = {
        "SELF": own,
        "NEVER": 2**31 - 1 if whole else float("inf"),
        "DIM": dim,
        "ROWS": 128,
        "COLUMNS": 256 if sm == 90 else 128,
        "DEPTH": 128 if whole else 64,
    }
    pointers = {"x": element, "y": element, "low_x": sums, "low_y": sums}
    pointers |= dict.fromkeys(("pairs_x", "pairs_y", "count"), "*i32")
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if name in pointers
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": 8, "num_stages": 3})


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("sm", [80, 90, 100, 120])
def test_kernels_neighbours_compiles(sm: int, precision: str, resources: Resources) -> None:
    if triton_interprets():
        pytest.skip("this process interprets; it can't compile")
    compiled = _compile(sm, precision)
    registers, stack, listing = resources(compiled)
    # 256 threads of at most 255 registers are what an SM holds.
    assert registers <= 255
    assert stack == 0, f"{stack} bytes of stack"
    assert compiled.metadata.shared <= SHARED_LIMIT[sm]
    if sm == 90:  # warp-group products, of integers for int8
        assert ("IGMMA" if precision == "int8" else "HGMMA") in listing
        assert " IMMA" not in listing
        assert " HMMA" not in listing
    # Nothing is written but what is appended.
    assert listing.count("ATOM") <= 130


def test_kernels_neighbours_variants_compile(resources: Resources) -> None:
    if triton_interprets():
        pytest.skip("this process interprets; it can't compile")
    for dim in (128, 1024):
        _, stack, _ = resources(_compile(90, "int8", own=False, dim=dim))
        assert stack == 0
