"""Which engine writes, and what of it decides the texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from obverse.engine.generate.prompts import prompt_source
from obverse.engine.generate.protocol import Backend
from obverse.engine.generate.resilient import ResilientBackend
from obverse.engine.generate.settings import GenerateSettings, is_local, model_source, resolve_backend
from obverse.engine.records.fingerprint import file_hash, folder_mark
from obverse.engine.records.keys import content_hash

__all__ = ["make_backend", "model_key", "redoes_shards"]


def make_backend(
    settings: GenerateSettings, seed: int, rows: int | None = None, *, say: Callable[[str], None] | None = None
) -> Backend:
    """Load the model behind the `Backend` protocol; the caller closes it.

    ``seed`` seeds the engine itself; rows have seeds of their own. ``rows`` is how many the whole run has, if known:
    an engine may take longer to start for a long one. An engine in this process that dies is started anew, and a row
    that kills it fails alone; ``say`` is told, and of a server that is away (None: they are logged).

    Raises `MissingPackageError`, `BackendError` (the model can't be loaded) or `RecipeError` (an unknown ``engine``
    argument).
    """
    name = resolve_backend(settings)
    if name == "vllm":
        from obverse.engine.generate.vllm import VllmBackend

        return ResilientBackend(lambda: VllmBackend(settings, seed, rows), say=say)
    if name == "transformers":
        from obverse.engine.generate.transformers import TransformersBackend

        return ResilientBackend(lambda: TransformersBackend(settings), say=say)
    from obverse.engine.generate.openai import OpenAIBackend

    return OpenAIBackend(settings, say=say)


def model_key(settings: GenerateSettings) -> str:
    """A hash of all that decides the texts beside targets and seed: settings, template text, model files.

    A local model counts by its files' names, sizes, and first and last 64 KiB, so that a model trained anew
    in the same folder is a different model. How many rows are in flight does not count, nor how often a row may be
    tried: a row that was written stays as it is.
    """
    uncounted = {"attempts": True, "retry_share": True}
    facts: dict[str, Any] = settings.model_dump(
        exclude={"concurrency": True, "prompt": True, "output": uncounted, "few_shot": {"examples": True}}
    )
    facts["prompt"] = prompt_source(settings)
    if settings.few_shot.examples is not None:
        facts["examples"] = file_hash(settings.few_shot.examples.expanduser())
    facts["backend"] = resolve_backend(settings)
    if is_local(settings):
        facts["files"] = folder_mark(model_source(settings))
    return content_hash(facts)


def redoes_shards(settings: GenerateSettings) -> bool:
    """Whether a shard that was cut short is written anew, whole: where a row's bytes depend on its batch."""
    return resolve_backend(settings) == "transformers"
