"""For the kernels' tests: where a kernel runs, fresh problems, and what a kernel compiled ahead of time uses."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from obverse.kernels.launch import triton_interprets

Resources = Callable[[Any], tuple[int, int, str]]


def _homes() -> list[Any]:
    if os.environ.get("TRITON_INTERPRET") == "1" and triton_interprets():
        return [pytest.param(("triton", "cpu"), id="triton-interpreter")]
    names = ("cpp", "cpp-avx512", "cpp-avx2", "cpp-portable")
    found: list[Any] = [pytest.param((name, "cpu"), id=name) for name in names]
    found.append(pytest.param(("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu))
    return found


@pytest.fixture(params=_homes())
def where(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A kernel's name and the device it runs on. In a process that interprets Triton only that one: see
    `test_kernels_interpreter`, which starts such a process.
    """
    kernel, device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return kernel, device


@pytest.fixture
def rng() -> torch.Generator:
    """A fresh seed each run, printed when a test fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def weights_for(rng: torch.Generator) -> Callable[..., dict[str, Tensor]]:
    """Inputs that a scheme takes: weights that are zero, negative, huge and tiny, and log-probabilities."""

    def make(n: int, scheme: str, device: str = "cpu") -> dict[str, Tensor]:
        given: dict[str, Tensor] = {}
        if scheme != "plain":
            weight = torch.randn(n, generator=rng)
            weight[::4] = 0.0
            weight[1::7] *= 1e4
            weight[2::7] *= 1e-6
            given["sample_weight"] = weight
        if scheme in ("imp", "dimp"):
            given["log_quality"] = -6 * torch.rand(n, generator=rng)
        if scheme == "imp":
            given["log_diversity"] = -6 * torch.rand(n, generator=rng)
        return {name: values.to(device) for name, values in given.items()}

    return make


@pytest.fixture
def rows_for(rng: torch.Generator) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Logits [n, v], targets of which every fifth is ignored, and an upstream gradient with zeros."""

    def make(n: int, v: int, device: str = "cpu", scale: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
        logits = scale * torch.randn(n, v, generator=rng)
        target = torch.randint(0, v, (n,), generator=rng)
        target[3::5] = -100
        upstream = torch.randn(n, generator=rng)
        upstream[::6] = 0.0
        return logits.to(device), target.to(device), upstream.to(device)

    return make


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
