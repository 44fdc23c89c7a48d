"""Models made on the spot to benchmark generation: random weights, the embedded model's tokenizer, no end of text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from obverse.engine.generate.settings import DEMO_MODEL

MOST_TOKENS = 1024
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
# The smallest whose prefill outweighs its prompts' tokenization, as every real model's does.
FEW_SHOT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {"hidden_size": 768, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 12}
SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}


def config(shape: dict[str, int]) -> dict[str, object]:
    """A Llama's config.json; every row runs to its most tokens, since no token ends a text."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 4096,
        "num_key_value_heads": shape["num_attention_heads"],
        "max_position_embeddings": MOST_TOKENS,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        **shape,
    }


def small_tokenizer(path: Path, texts: Sequence[str], vocabulary: int) -> int:
    """Train a tokenizer on ``texts`` and write it; a vocabulary of 4,096 makes sampling a quarter of a tiny model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def make_llama(
    folder: Path, shape: dict[str, int], *, weights: bool = True, texts: Sequence[str] = ()
) -> tuple[Path, int]:
    """Write a Llama of this shape to ``folder``; gives it and its number of parameters (0 without weights).

    With ``texts`` its tokenizer is one of 1,000 tokens trained on them, not the embedded model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO_MODEL / "tokenizer.json", folder)
    if texts:
        shape = {**shape, "vocab_size": small_tokenizer(folder / "tokenizer.json", texts, 1000)}
    tokenizer = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": MOST_TOKENS}))
    (folder / "config.json").write_text(json.dumps(config(shape)))
    if not weights:
        return folder, 0
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**config(shape)))
    model.save_pretrained(folder)
    return folder, sum(part.numel() for part in model.parameters())
