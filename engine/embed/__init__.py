"""The embed stage: texts to unit vectors."""

from __future__ import annotations

from obverse.engine.embed.cache import VectorCache
from obverse.engine.embed.encoder import Encoder
from obverse.engine.embed.protocol import TextEncoder, open_encoder
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.embed.stream import EmbedReport, embed_files
from obverse.engine.embed.vectors import embed_texts, open_cache, read_vectors

__all__ = [
    "EmbedReport",
    "EmbedSettings",
    "Encoder",
    "TextEncoder",
    "VectorCache",
    "embed_files",
    "embed_texts",
    "open_cache",
    "open_encoder",
    "read_vectors",
]
