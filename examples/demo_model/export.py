"""The trained model as a Hugging Face folder, and what it is asked before it is shipped: mention recall."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from obverse.engine.records.linearise import linearise

from .corpus import Example
from .grammar import entities_of
from .model import LeanLlama
from .tokenizer import save_tokenizer

__all__ = ["generate_texts", "install", "mention_recall", "read_weights", "write_folder"]


def write_folder(model: LeanLlama, tokenizer: Any, folder: Path) -> None:
    """Write config, generation config, tokenizer and bfloat16 safetensors into ``folder``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    shape = model.shape
    ids = {name: tokenizer.token_to_id(f"<{name}>") for name in ("bos", "eos", "pad")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
    }
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["pad"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {name: w.to(torch.bfloat16).contiguous() for name, w in model.weights().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def read_weights(model: LeanLlama, folder: Path) -> None:
    """Load what `write_folder` wrote into ``model`` (float32 masters of the bfloat16 weights)."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name: w.float() for name, w in state.items()})


def install(model: LeanLlama, tokenizer: Any, target: Path) -> None:
    """Replace the files in ``target`` one rename each, weights last, so that a reader never sees half a file."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".demo_model_") as scratch:
        write_folder(model, tokenizer, Path(scratch))
        for path in sorted(Path(scratch).iterdir(), key=lambda p: p.suffix == ".safetensors"):
            path.replace(target / path.name)


def generate_texts(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, temperature: float, seed: int, limit: int = 120
) -> list[str]:
    """One text for each example's triples from a transformers model and its tokenizer; temperature 0 is greedy."""
    prompts = [f"{linearise(e.triples)} [text]" for e in examples]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=limit, **sampling)
    rows = out[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def mention_recall(examples: Sequence[Example], texts: Sequence[str]) -> tuple[float, float]:
    """The share of entities named verbatim, and the share of texts that name all of theirs."""
    named = [[name in text for name in entities_of(e.triples)] for e, text in zip(examples, texts, strict=True)]
    flat = [hit for row in named for hit in row]
    return sum(flat) / len(flat), sum(map(all, named)) / len(named)
