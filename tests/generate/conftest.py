from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.records.schemas import TARGETS


@pytest.fixture(scope="session")
def make_targets() -> Callable[..., pa.Table]:
    """Targets of one or two triplets with plain ASCII names; or of labels."""

    def make(ids: Any, *, label: str | None = None, name: str = "Town", attributes: str | None = None) -> pa.Table:
        def triplet(i: int, k: int) -> dict[str, Any]:
            parts = {"subject": f"{name} {i}", "predicate": "lies in", "object": f"Land {i % 7}{k}"}
            return {part: {"uri": f"x:{surface}", "surfaceform": surface} for part, surface in parts.items()}

        rows = [
            {
                "id": i,
                "triplets": None if label else [triplet(i, k) for k in range(1 + i % 2)],
                "label": label,
                "attributes": attributes,
                "is_real": False,
            }
            for i in ids
        ]
        return pa.Table.from_pylist(rows, schema=TARGETS)

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 60 thousand random parameters over bytes, peaked enough that sampling has something to say."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(mark, lstrip=True) for mark in ("[s]", "[r]", "[o]", "[e]", "[text]")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    gc.collect()
    return folder
