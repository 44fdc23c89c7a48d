"""For the tests that compile kernels ahead of time: what a compiled kernel uses."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Resources = Callable[[Any], tuple[int, int, str]]


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    """Of a compiled kernel: registers a thread, bytes of stack (spills) and the disassembly."""

    def measure(compiled: Any) -> tuple[int, int, str]:
        import triton

        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        file = tmp_path / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file], **options).stdout
        listing = subprocess.run([tools / "nvdisasm", "-c", file], **options).stdout
        registers, stack = re.search(r"REG:(\d+)", usage), re.search(r"STACK:(\d+)", usage)
        assert registers is not None, usage
        assert stack is not None, usage
        return int(registers[1]), int(stack[1]), listing

    return measure
