"""Candidates by FAISS on GPUs: flat on bfloat16, inverted files, CAGRA where the package has it. Not run on a GPU yet.

Call only where `faiss.num_gpus` is not 0: elsewhere GPU resources end the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity import faiss
from obverse.engine.diversity.estimate import sample_rows
from obverse.engine.diversity.faiss_index import ivf_lists
from obverse.engine.diversity.vectors import unit_blocks, unit_rows
from obverse.engine.errors import InputError

__all__ = ["candidates"]

Matrix = npt.NDArray[Any]
Progress = Callable[[int], None]

_BLOCK = 16_384
_PROBES = 64


def candidates(
    x: Matrix, wide: int, kind: str, devices: int, seed: int, on_progress: Progress
) -> tuple[npt.NDArray[np.int64], dict[str, int | str]]:
    """Row numbers ``[N, wide]`` likely nearest to each of ``x [N, d]``, itself among them, and what was used.

    ``auto`` is flat: on one GPU by `knn_gpu` on bfloat16 tensors (tensor cores, unlike FAISS's float32), on several
    by float16 shards. ``cagra`` needs a build with cuVS; `InputError` without it.
    """
    package = faiss.load()
    if kind == "cagra":
        index = _cagra(package, x)
    elif kind == "ivf":
        index = _inverted(package, x, devices, seed)
    elif devices == 1:
        return _flat_bf16(package, x, wide, on_progress), {"index": "gpu_flat_bf16", "gpus": 1}
    else:
        index = package.index_cpu_to_all_gpus(package.IndexFlatIP(x.shape[1]), co=_sharded(package))
        for _, block in unit_blocks(x, _BLOCK):
            index.add(block)
    found = np.empty((len(x), wide), np.int64)
    for start, block in unit_blocks(x, _BLOCK):
        found[start : start + len(block)] = index.search(block, wide)[1]
        on_progress(len(block))
    return found, {"index": f"gpu_{'flat_fp16' if kind in ('auto', 'flat') else kind}", "gpus": devices}


def _flat_bf16(package: Any, x: Matrix, wide: int, on_progress: Progress) -> npt.NDArray[np.int64]:
    import torch
    from faiss.contrib import torch_utils  # noqa: F401 - lets knn_gpu take tensors

    resources = package.StandardGpuResources()
    base = torch.empty(x.shape, dtype=torch.bfloat16, device="cuda")
    for start, block in unit_blocks(x, _BLOCK):
        base[start : start + len(block)] = torch.from_numpy(block).to("cuda")
    found = np.empty((len(x), wide), np.int64)
    for start in range(0, len(x), _BLOCK):
        queries = base[start : start + _BLOCK]
        indices = package.knn_gpu(resources, queries, base, wide, metric=package.METRIC_INNER_PRODUCT)[1]
        found[start : start + len(queries)] = indices.cpu().numpy()
        on_progress(len(queries))
    return found


def _sharded(package: Any) -> Any:
    options = package.GpuMultipleClonerOptions()
    options.shard, options.useFloat16 = True, True
    return options


def _inverted(package: Any, x: Matrix, devices: int, seed: int) -> Any:
    lists = ivf_lists(len(x))
    plain = package.index_factory(x.shape[1], f"IVF{lists},SQfp16", package.METRIC_INNER_PRODUCT)
    plain.cp.seed, plain.cp.spherical, plain.nprobe = seed, True, min(_PROBES, lists)
    index = package.index_cpu_to_all_gpus(plain, co=_sharded(package), ngpu=devices)
    index.train(unit_rows(x[sample_rows(len(x), 64 * lists, seed)]))
    for _, block in unit_blocks(x, _BLOCK):
        index.add(block)
    return index


def _cagra(package: Any, x: Matrix) -> Any:
    if not hasattr(package, "GpuIndexCagra"):
        raise InputError("a build of FAISS with cuVS (faiss-gpu-cuvs)", field="faiss_index", seen="cagra")
    settings = package.GpuIndexCagraConfig()
    settings.graph_degree, settings.intermediate_graph_degree = 64, 128
    index = package.GpuIndexCagra(package.StandardGpuResources(), x.shape[1], package.METRIC_INNER_PRODUCT, settings)
    index.train(unit_rows(x))
    return index
