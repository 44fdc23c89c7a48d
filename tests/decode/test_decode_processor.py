"""The Hugging Face processor against Hugging Face's own with a plain Python rule: same outputs, whatever the search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LogitsProcessorList

from obverse._core import Constraint, Matcher, Subset, Trie
from obverse.engine.decode.automaton import marked
from obverse.engine.decode.processor import ConstrainedLogitsProcessor, choose_allowed, mask_disallowed
from obverse.engine.records.sequence import MarkerIds

EOS = 2
NAMES = [(10, 11), (10, 11, 12), (10, 13), (20,), (20, 21, 22), (30, 31, 32, 33), (40,), (41, 40)]
Decode = Callable[[Any, torch.Tensor], tuple[Any, int]]


def trie_of(names: list[tuple[int, ...]]) -> Trie:
    offsets = np.cumsum([0, *map(len, names)]).astype(np.int64)
    return Trie.build(np.array([t for name in names for t in name], np.int32), offsets)


def constraint_of(vocab_size: int, **limits: Any) -> Constraint:
    parts, start = marked("subject_collapsed", MarkerIds([50, 51], [50, 52], [50, 53], [50, 54]))
    relations = trie_of([(60,), (60, 61), (62,)])
    return Constraint(trie_of(NAMES), relations, parts=parts, start=start, eos=EOS, vocab_size=vocab_size, **limits)


def plain(constraint: Constraint, start: int, subsets: list[Subset | None] | None) -> Callable[..., list[int]]:
    """What may follow, from a matcher that replays the row at every step."""

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        matcher = Matcher(constraint, subset=None if subsets is None else subsets[batch])
        good = matcher.replay(ids[start:].numpy().astype(np.int32))
        found: list[int] = matcher.allowed().tolist() if good else []
        return found or [EOS]

    return allowed


@pytest.fixture(scope="module", params=["decoder", "encoder_decoder"])
def model(request: pytest.FixtureRequest, wild_llama: Path, tiny_t5: Path) -> Any:
    if request.param == "decoder":
        return AutoModelForCausalLM.from_pretrained(wild_llama).eval()
    return AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()


def prompts_for(model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Prompts of unequal length, padded, and the columns that come before the first generated token."""
    decoder = not model.config.is_encoder_decoder
    rows = [[5, 6, 7, 8], [9, 14], [15, 16, 17], [18, 19, 23, 24]]
    pads = [[0] * (4 - len(row)) for row in rows]
    ids = torch.tensor([pad + row if decoder else row + pad for row, pad in zip(rows, pads, strict=True)])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}, 4 if decoder else 1


SEARCHES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 5, "temperature": 1.5},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
}


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("search", list(SEARCHES))
def test_generate_writes_what_the_plain_rule_lets_it_write(model: Any, search: str, limited: bool) -> None:
    inputs, start = prompts_for(model)
    constraint = constraint_of(model.config.vocab_size, max_triplets=2, unique=True)
    subsets: list[Subset | None] | None = None
    if limited:
        nodes = constraint.entities.nodes_of_sequences()
        subsets = [Subset(constraint.entities, nodes[[0, 1, 5]]), None, Subset(constraint.entities, nodes[[3]]), None]
    options = {"max_new_tokens": 40, "eos_token_id": EOS, "pad_token_id": 0, **SEARCHES[search]}
    groups = options.get("num_return_sequences", 1) if search == "sampling" else 1
    found = []
    for ours in (True, False):
        torch.manual_seed(1)
        if ours:
            processor = ConstrainedLogitsProcessor(constraint, subsets=subsets)
            extra: dict[str, Any] = {"logits_processor": LogitsProcessorList([processor])}
        else:
            rule = plain(constraint, start, subsets)
            extra = {"prefix_allowed_tokens_fn": lambda batch, ids, r=rule, g=groups: r(batch // g, ids)}
        found.append(model.generate(**inputs, **options, **extra))
    assert torch.equal(found[0], found[1])
    outputs = [row[start:].tolist() for row in found[0]]
    assert len({tuple(row) for row in outputs}) > 1
    whole = [row[: row.index(EOS) + 1] for row in outputs if EOS in row]
    assert whole
    for row in whole:
        assert Matcher(constraint).replay(np.array(row, np.int32))


def test_a_processor_serves_many_generations(wild_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(wild_llama).eval()
    inputs, start = prompts_for(model)
    constraint = constraint_of(model.config.vocab_size)
    processor = ConstrainedLogitsProcessor(constraint)
    options: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": EOS, "pad_token_id": 0}
    rule = plain(constraint, start, None)
    expected = model.generate(**inputs, **options, prefix_allowed_tokens_fn=rule)
    for _ in range(3):
        assert torch.equal(model.generate(**inputs, **options, logits_processor=[processor]), expected)
    shorter = {name: value[:, 1:] for name, value in inputs.items()}
    rule = plain(constraint, 3, None)
    expected = model.generate(**shorter, **options, prefix_allowed_tokens_fn=rule)
    assert torch.equal(model.generate(**shorter, **options, logits_processor=[processor]), expected)


def steps(count: int, vocab: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids that grow by one valid token a step, and fresh scores."""
    constraint, rng = constraint_of(vocab), np.random.default_rng(0)
    matchers, rows, out = [Matcher(constraint) for _ in range(3)], [[7, 7]] * 3, []
    for _ in range(count):
        out.append((torch.tensor(rows), torch.randn(3, vocab)))
        chosen = []
        for matcher in matchers:
            if matcher.is_complete:
                matcher.reset()
            chosen.append(int(rng.choice(matcher.allowed()[-3:])))
            assert matcher.accept(chosen[-1])
        rows = [[*row, token] for row, token in zip(rows, chosen, strict=True)]
    return out


@pytest.mark.parametrize("meddle", ["nothing", "keep", "keep a view", "write", "write in inference mode"])
def test_scores_that_others_keep_or_change_stay_right(meddle: str) -> None:
    """Its tensors are used again only where nobody can tell."""
    vocab = 70
    processor = ConstrainedLogitsProcessor(constraint_of(vocab), prompt_length=2)
    kept: list[tuple[Any, torch.Tensor]] = []
    tensors = set()
    for ids, scores in steps(14, vocab):
        found = processor(ids, scores)  # type: ignore[arg-type]
        expected = mask_disallowed(_matchers(constraint_of(vocab), ids[:, 2:]), scores.clone())
        assert torch.equal(found, expected)
        tensors.add(found.data_ptr())
        if meddle == "keep":
            kept.append((found, expected))
        elif meddle == "keep a view":
            kept.append((found[1], expected[1]))
        elif meddle == "write":
            found[:, 3] = 99.0
        elif meddle == "write in inference mode":
            with torch.inference_mode():
                found.fill_(1.0)
    for mine, expected in kept:
        assert torch.equal(mine, expected)
    if meddle == "nothing":
        assert len(tensors) == 2


def _matchers(constraint: Constraint, generated: torch.Tensor) -> list[Matcher]:
    matchers = []
    for row in generated.tolist():
        matchers.append(Matcher(constraint))
        assert EOS in row or matchers[-1].replay(np.array(row, np.int32))
        if EOS in row:
            assert matchers[-1].accept(EOS)
    return matchers


def test_half_precision_and_padded_vocabularies() -> None:
    vocab = 70
    constraint = constraint_of(vocab)
    matchers = [*_matchers(constraint, torch.tensor([[50, 51], [50, 51]])), Matcher(constraint)]
    scores = torch.randn(3, vocab + 9).bfloat16()
    ids = torch.tensor([[0, 50, 51], [0, 50, 51], [0, 50, 51]])
    found = ConstrainedLogitsProcessor(constraint, prompt_length=1)(ids, scores)  # type: ignore[arg-type]
    for row, matcher in zip(found[:2], matchers[:2], strict=True):
        assert row.isfinite().nonzero()[:, 0].tolist() == matcher.allowed().tolist()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[found.isfinite()], scores[found.isfinite()])
    masked = mask_disallowed(matchers, scores.clone())
    assert choose_allowed(matchers, scores).tolist() == masked.argmax(-1).tolist()
