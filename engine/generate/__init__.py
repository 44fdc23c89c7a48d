"""Generate: prompts, backends (vllm, transformers, openai), the rolling window, throughput.

The public names are `GenerateSettings`, `build_prompt`, `make_backend`, `generate_shards`, `generate`,
`model_key`, `Throughput` and the protocol's `Backend`, `Request`, `Completion`.
"""

from __future__ import annotations

from obverse.engine.generate.prompts import Prompt, build_prompt
from obverse.engine.generate.protocol import Backend, Completion, Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import generate, generate_shards, make_backend, model_key
from obverse.engine.generate.throughput import Throughput

__all__ = [
    "Backend",
    "Completion",
    "GenerateSettings",
    "Prompt",
    "Request",
    "Throughput",
    "build_prompt",
    "generate",
    "generate_shards",
    "make_backend",
    "model_key",
]
