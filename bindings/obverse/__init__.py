"""Obverse: sample targets, generate, check, embed, score, weigh, train, decode under constraints, evaluate, report.

Public names load on first use, so ``import obverse`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obverse.engine.api import check, decode, embed, evaluate, generate, run, sample, score, train, weigh
    from obverse.engine.check.checker import Checker
    from obverse.engine.decode.automaton import Template
    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.decode.forms import TemplateFormat
    from obverse.engine.decode.processor import ConstrainedLogitsProcessor
    from obverse.engine.decode.vllm_processor import constraint_processors
    from obverse.engine.embed.encoder import Encoder
    from obverse.engine.graph.graph import KnowledgeGraph
    from obverse.engine.graph.load import load_graph
    from obverse.engine.losses import (
        LinearWeightedCrossEntropy,
        SequenceWeightedCrossEntropy,
        WeightedCrossEntropy,
        linear_weighted_cross_entropy,
        weighted_cross_entropy,
    )
    from obverse.engine.losses.trainer import weighted_trainer
    from obverse.engine.losses.vocab_parallel import vocab_parallel_weighted_cross_entropy
    from obverse.engine.records.sequence import SequenceFormat

__version__ = "0.1.0"

_HOMES = {
    "Catalog": "obverse.engine.decode.catalog",
    "Checker": "obverse.engine.check.checker",
    "ConstrainedLogitsProcessor": "obverse.engine.decode.processor",
    "Encoder": "obverse.engine.embed.encoder",
    "KnowledgeGraph": "obverse.engine.graph.graph",
    "LinearWeightedCrossEntropy": "obverse.engine.losses",
    "SequenceFormat": "obverse.engine.records.sequence",
    "SequenceWeightedCrossEntropy": "obverse.engine.losses",
    "Template": "obverse.engine.decode.automaton",
    "TemplateFormat": "obverse.engine.decode.forms",
    "WeightedCrossEntropy": "obverse.engine.losses",
    "check": "obverse.engine.api",
    "constraint_processors": "obverse.engine.decode.vllm_processor",
    "decode": "obverse.engine.api",
    "embed": "obverse.engine.api",
    "evaluate": "obverse.engine.api",
    "generate": "obverse.engine.api",
    "linear_weighted_cross_entropy": "obverse.engine.losses",
    "load_graph": "obverse.engine.graph.load",
    "run": "obverse.engine.api",
    "sample": "obverse.engine.api",
    "score": "obverse.engine.api",
    "train": "obverse.engine.api",
    "vocab_parallel_weighted_cross_entropy": "obverse.engine.losses.vocab_parallel",
    "weigh": "obverse.engine.api",
    "weighted_cross_entropy": "obverse.engine.losses",
    "weighted_trainer": "obverse.engine.losses.trainer",
}

__all__ = [
    "Catalog",
    "Checker",
    "ConstrainedLogitsProcessor",
    "Encoder",
    "KnowledgeGraph",
    "LinearWeightedCrossEntropy",
    "SequenceFormat",
    "SequenceWeightedCrossEntropy",
    "Template",
    "TemplateFormat",
    "WeightedCrossEntropy",
    "__version__",
    "check",
    "constraint_processors",
    "decode",
    "embed",
    "evaluate",
    "generate",
    "linear_weighted_cross_entropy",
    "load_graph",
    "run",
    "sample",
    "score",
    "train",
    "vocab_parallel_weighted_cross_entropy",
    "weigh",
    "weighted_cross_entropy",
    "weighted_trainer",
]


def __getattr__(name: str) -> Any:
    if name == "neighbours":  # a module of this package, loaded on first use like the names
        return import_module("obverse.neighbours")
    if name not in _HOMES:
        raise AttributeError(f"module 'obverse' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
