"""The embed stage: texts to unit vectors."""

from __future__ import annotations

from obverse.engine.embed.encoder import Encoder
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.embed.vectors import embed_texts, read_vectors

__all__ = ["EmbedSettings", "Encoder", "embed_texts", "read_vectors"]
