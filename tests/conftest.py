"""For every test: no deadlines for property tests, and a tiny Llama with rows it can learn from.

A shared machine keeps no deadline, so hypothesis has none. The model has the demo model's kind of tokenizer and is made
from nothing, so that tests of training and decoding need no file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings

from obverse.engine.records.schemas import TRIPLETS

settings.register_profile("obverse", deadline=None)
settings.load_profile("obverse")

CITIES = ["Oslo", "Lima", "New York City", "Paris", "Rome", "Kyiv", "Cairo", "Quito", "Accra", "Dakar"]
COUNTRIES = ["Norway", "Peru", "United States", "France", "Italy", "Ukraine", "Egypt", "Ecuador", "Ghana", "Senegal"]


def make_tokenizer(folder: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [f"{city} is the capital of {country}." for city, country in zip(CITIES, COUNTRIES, strict=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus * 3,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    markers = ["[s]", "[r]", "[o]", "[e]", "[text]", "[facts]"]
    tokenizer.add_tokens([AddedToken(marker, lstrip=True, normalized=False) for marker in markers])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)
    return fast


def make_llama(folder: Path, *, scale: float = 0.02) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab = len(make_tokenizer(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=scale,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_t5(folder: Path) -> Path:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    vocab = len(make_tokenizer(folder))
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def triplet(subject: str, predicate: str, object_: str) -> dict[str, dict[str, str]]:
    names = {"subject": subject, "predicate": predicate, "object": object_}
    return {role: {"uri": f"u:{name}", "surfaceform": name} for role, name in names.items()}


def capital_rows(count: int) -> pa.Table:
    """`count` rows, each of one or two facts."""
    texts, targets = [], []
    for i in range(count):
        pairs = [(CITIES[i % 10], COUNTRIES[i % 10])]
        if i % 3 == 0:
            pairs.append((CITIES[(i + 3) % 10], COUNTRIES[(i + 3) % 10]))
        texts.append(" ".join(f"{city} is the capital of {country}." for city, country in pairs))
        targets.append([triplet(city, "capital of", country) for city, country in pairs])
    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "text": texts,
            "triplets": pa.array(targets, TRIPLETS),
        }
    )


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def wild_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights so large that every text gets another output."""
    return make_llama(tmp_path_factory.mktemp("wild"), scale=0.5)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture
def rows() -> Any:
    return capital_rows
