"""The constraint kernel compiled ahead of time to a cubin, with no GPU: registers, spills, order of its accesses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from obverse.kernels.launch import triton_installed, triton_interprets

Resources = Callable[[Any], tuple[int, int, str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not triton_installed(), reason="Triton is not installed"),
]

POINTERS = {
    "row_slots": "*i32",
    "row_positions": "*i64",
    "row_newest": "*i32",
    "row_drafts": "*i32",
    "history": "*i32",
    "positions": "*i32",
    "tags": "*i32",
    "flags_out": "*i32",
    "slots": "*i32",
    "low": "*i16",
    "high": "*u8",
    "offset": "*u8",
    "blocks": "*i32",
    "overflow": "*i32",
    "dense_nodes": "*i32",
    "dense_bits": "*i32",
    "parts": "*i32",
    "moves": "*i32",
}


def _compile(dtype: str, sm: int, *, kind: int = 1, drafts: bool = False) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from obverse.kernels.mask_logits import NUM_WARPS, _mask_kernel

    constants = {"HAS_DRAFTS": drafts, "KIND": kind, "LANES": 4}
    pointers = {"logits": dtype, **POINTERS}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32") for name in _mask_kernel.arg_names
    }
    # As the launcher finds them at run time for rows of 152,064 logits.
    aligned = {*pointers, "row_stride", "num_columns", "vocab_size", "dense_words", "tile_columns"}
    attributes = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(_mask_kernel.arg_names) if name in aligned
    }
    source = ASTSource(fn=_mask_kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": NUM_WARPS})


@pytest.fixture(autouse=True)
def _compiles_here() -> None:
    if triton_interprets():
        pytest.skip("this process interprets; it can't compile")


def _check(compiled: Any, resources: Resources) -> None:
    registers, stack, listing = resources(compiled)
    # `column_tiles` counts on 10 programs of 128 threads an SM.
    assert registers <= 48, f"{registers} registers a thread"
    assert compiled.metadata.shared == 0
    # To stay at 48, ptxas may lay down a value or two around the loops, once a thread; never inside one that fills.
    assert stack <= 32, f"{stack} bytes of stack"
    names = re.findall(r"\b(STG\.E\.128|LDL|STL)\b", listing)
    wide = [i for i, name in enumerate(names) if name == "STG.E.128"]
    assert wide, "columns are not filled 128 bits at a time"
    assert len(wide) == wide[-1] - wide[0] + 1, "spills inside the loop that fills"


@pytest.mark.parametrize("dtype", ["*bf16", "*fp16", "*fp32"])
@pytest.mark.parametrize("sm", [80, 90, 100])
def test_kernels_mask_compiles(dtype: str, sm: int, resources: Resources) -> None:
    _check(_compile(dtype, sm), resources)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("drafts", [False, True])
def test_kernels_mask_variants_compile(kind: int, drafts: bool, resources: Resources) -> None:
    _check(_compile("*bf16", 90, kind=kind, drafts=drafts), resources)


def test_kernels_mask_reads_before_it_fills_and_fills_before_it_writes_back(resources: Resources) -> None:
    """The compiler moved no logit across the two barriers: read, fill, write back."""
    _, _, listing = resources(_compile("*bf16", 90))
    found = re.findall(r"BAR\.SYNC|LDG\.E\.U16\S*|STG\.E\.\S+", listing)
    assert found.count("BAR.SYNC") == 2
    first, second = (i for i, name in enumerate(found) if name == "BAR.SYNC")
    before, between, behind = found[:first], found[first + 1 : second], found[second + 1 :]
    assert any(name.startswith("LDG.E.U16") for name in before)
    assert not any(".U16" in name and name.startswith("STG") for name in before)
    assert any(name.startswith("STG.E.128") for name in between)
    assert [name[:9] for name in behind] == ["STG.E.U16"] * len(behind) != []
