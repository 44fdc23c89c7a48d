"""Generate: prompts, backends (vllm, transformers, openai), the rolling window, throughput.

The public names are `GenerateSettings`, `build_prompt`, `make_backend`, `model_key`, `generate`,
`generate_shards`, `generate_into`, `Throughput` and the protocol's `Backend`, `Request`, `Completion`.
"""

from __future__ import annotations

from obverse.engine.generate.backends import make_backend, model_key
from obverse.engine.generate.prompts import Prompt, build_prompt
from obverse.engine.generate.protocol import Backend, Completion, Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import generate, generate_into, generate_shards
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
    "generate_into",
    "generate_shards",
    "make_backend",
    "model_key",
]
