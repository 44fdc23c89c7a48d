"""The logits processor for vLLM, for both of its model runners.

::

    from vllm import LLM, SamplingParams
    from obverse.engine.decode.vllm_processor import constraint_processors

    llm = LLM(model, logits_processors=constraint_processors({"wiki": "wiki.catalog"}))
    llm.generate(prompts, SamplingParams(max_tokens=256, extra_args={"obverse_catalog": "wiki"}))

The runner that starts chooses: it makes the one class its own way, and gets `RowRequests` (V1) or `SlotRequests` (V2).
There is no entry point: vLLM's V2 runner refuses to start where one is installed that it can't take.

For ``vllm serve`` the class has a name, and vLLM's own settings name the catalogues::

    --logits-processors obverse.engine.decode.vllm_processor:ConstraintProcessor
    --additional-config '{"obverse": {"catalogs": {"wiki": "wiki.catalog"}}}'

vLLM does not show those settings to the check of a request, so there a request for an unknown catalogue is not refused:
it ends at once, and the log says why.
"""

from __future__ import annotations

import copyreg
from abc import ABCMeta
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obverse.engine.decode.automaton import Template
from obverse.engine.decode.vllm_params import CatalogShelf, Offer, request_options
from obverse.engine.decode.vllm_v1 import RowRequests
from obverse.engine.decode.vllm_v2 import SlotRequests
from obverse.engine.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    ConstraintProcessor: type

__all__ = ["ConstraintProcessor", "constraint_processors"]


def constraint_processors(
    catalogs: Mapping[str, str | Path] | None = None, *, templates: Mapping[str, Template] | None = None
) -> list[type]:
    """What ``LLM(logits_processors=...)`` takes.

    Args:
        catalogs: name to file, as `Catalog.save` wrote it for the model's tokenizer. None: named, with templates, in
            ``LLM(additional_config={"obverse": {"catalogs": {NAME: FILE}}})``.
        templates: forms of your own that requests may name, beside ``fully_expanded``, ``subject_collapsed``, ``json``.

    Raises:
        InputError: a file is not there or no catalogue.
        MissingPackageError: vLLM is not installed.
    """
    if catalogs is None:
        if templates:
            raise InputError("catalogues beside the templates", field="catalogs")
        return [_processor(None)]
    return [_processor(Offer.of(catalogs, templates))]


def __getattr__(name: str) -> Any:
    """``ConstraintProcessor``, made when first asked for: it takes vLLM to make."""
    if name == "ConstraintProcessor":
        return _processor(None)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Offering(ABCMeta):
    """The type of classes that carry an `Offer`, so that they can be sent to the engine's process."""

    offer: Offer | None


def _reduced(found: _Offering) -> tuple[Any, tuple[Offer | None]]:
    return _rebuild, (found.offer,)


def _rebuild(offer: Offer | None) -> type:
    return _processor(offer)


@cache
def _processor(offer: Offer | None) -> type:
    """The class over ``offer``; the same one for the same offer, for vLLM compares classes."""
    bases = _interfaces()
    if offer is not None:
        _ = offer.contexts  # opens the files, so that a wrong one is refused here
    copyreg.pickle(_Offering, _reduced)

    class ConstraintProcessor(*bases, metaclass=_Offering):  # type: ignore[misc]
        """Made as ``(vllm_config, device, is_pin_memory)`` by runner V1, as ``(vllm_config, req_states)`` by V2."""

        def __new__(cls, vllm_config: Any, where: Any, is_pin_memory: bool | None = None) -> Any:
            import torch

            shelf = CatalogShelf.of(vllm_config, offer)
            if is_pin_memory is None:
                return SlotRequests(shelf, where, drafts=vllm_config.speculative_config is not None)
            rows = vllm_config.scheduler_config.max_num_seqs
            device = torch.device(where)
            return RowRequests(shelf, rows, device, on_device=device.type == "cuda")

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """Refuse a request whose options are wrong, with a ValueError."""
            request_options(sampling_params, offer)

    ConstraintProcessor.offer = offer
    ConstraintProcessor.__module__ = __name__
    ConstraintProcessor.__qualname__ = "ConstraintProcessor"
    return ConstraintProcessor


def _interfaces() -> tuple[type, ...]:
    """vLLM's base classes; before 0.31 there is only the first."""
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor as RowInterface
    except ImportError as error:
        raise MissingPackageError("vllm", needed_for="constraints in vLLM", extra="gpu") from error
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotInterface
    except ImportError:
        return (RowInterface,)
    return (RowInterface, SlotInterface)
