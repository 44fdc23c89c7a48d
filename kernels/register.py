"""Operators of torch in the namespace ``obverse``: a schema, what runs, what says shapes, what differentiates."""

# mypy: disable-error-code="no-untyped-call"
# (torch.library is untyped.)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NUM_SETTINGS", "SETTINGS_SCHEMA", "operator"]

# The fields of a `WeightRule`, in order, and the kernel's name: what every operator takes after its tensors.
SETTINGS_SCHEMA = (
    "str scheme, float gamma, float log_low, float log_high, float label_smoothing, int ignore_index, "
    "bool focal_detached, float z_loss, str kernel"
)
NUM_SETTINGS = 9

_library = torch.library.Library("obverse", "DEF")


def operator(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define ``schema``, run by ``run`` on CPU and CUDA tensors; ``fake`` makes outputs of the right shapes only.

    ``context`` and ``backward`` differentiate it, see ``torch.library.register_autograd``.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    for device in ("CPU", "CUDA"):
        _library.impl(name, run, device)
    torch.library.register_fake(f"obverse::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"obverse::{name}", backward, setup_context=context, lib=_library)
    found: Callable[..., Any] = getattr(torch.ops.obverse, name).default
    return found
