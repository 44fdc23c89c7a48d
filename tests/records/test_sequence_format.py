from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Form, Triple, linearise
from obverse.engine.records.sequence import Architecture, SequenceFormat, order_by_mention

TRIPLES = [Triple("New York City", "country", "United States"), Triple("New York City", "on", "Hudson River")]


def byte_level(lstrip: bool = True) -> object:
    """The demo model's kind of tokenizer, over bytes alone; ``lstrip`` False: markers are plain text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lstrip:
        names = ["[s]", "[r]", "[o]", "[e]", "[facts]"]
        tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def sentencepiece_like() -> object:
    """As Llama 2's: every text gets a space in front, spaces are tokens' first letters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    specials = ["<unk>", "<s>", "</s>"]
    corpus = ["New", "York", "City", "Hudson", "River", "United", "States", "Paris", "a", "on", "country"]
    corpus += ["[s]", "[r]", "[o]", "[e]"]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(special_tokens=specials, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("form", ["fully_expanded", "subject_collapsed"])
@pytest.mark.parametrize("lstrip", [True, False])
def test_answer_is_the_linearisation_piece_by_piece(form: Form, lstrip: bool) -> None:
    fmt = SequenceFormat(byte_level(lstrip), form)
    ids = fmt.answer_ids(TRIPLES)
    pieces: list[int] = []
    for part in re.split(r"(\[[sroe]\])", linearise(TRIPLES, form)):
        if part.strip():
            pieces += fmt.tokenizer.encode(" " + part.strip(), add_special_tokens=False)
    assert ids == [*pieces, fmt.eos_id]
    assert fmt.triples(ids) == TRIPLES
    assert ids.count(fmt.eos_id) == 1


def test_bracket_markers_of_the_demo_tokenizer_are_one_token_each() -> None:
    fmt = SequenceFormat(byte_level())
    assert [len(marker) for marker in fmt.markers] == [1, 1, 1, 1]
    assert len({marker[0] for marker in fmt.markers}) == 4


def test_example_of_a_decoder_only_model() -> None:
    fmt = SequenceFormat(byte_level())
    example = fmt.encode_example("Hi.", TRIPLES[:1])
    tokens = fmt.tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens[: example.num_prompt_tokens] == ["<bos>", "H", "i", ".", "[facts]"]
    assert tokens[example.num_prompt_tokens] == "[s]"
    assert tokens[-2:] == ["[e]", "<eos>"]


def test_example_of_an_encoder_decoder_model() -> None:
    fmt = SequenceFormat(byte_level(), "fully_expanded", "encoder_decoder")
    example = fmt.encode_example("Hi.", TRIPLES[:1])
    tokens = fmt.tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens[: example.num_prompt_tokens] == ["H", "i", ".", "<eos>"]
    assert tokens[example.num_prompt_tokens] == "[s]"


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_only_the_text_is_cut(architecture: Architecture) -> None:
    fmt = SequenceFormat(byte_level(), "fully_expanded", architecture)
    whole = fmt.encode_example("abcdefghij", TRIPLES)
    cut = fmt.encode_example("abcdefghij", TRIPLES, max_length=len(whole.input_ids) - 4)
    assert len(cut.input_ids) == len(whole.input_ids) - 4
    assert cut.input_ids[cut.num_prompt_tokens :] == whole.input_ids[whole.num_prompt_tokens :]
    assert fmt.tokenizer.decode(cut.input_ids[: cut.num_prompt_tokens], skip_special_tokens=True)[:6] == "abcdef"
    assert "g" not in fmt.tokenizer.convert_ids_to_tokens(cut.input_ids[: cut.num_prompt_tokens])


name = st.text(st.characters(categories=["L", "N"], include_characters=" .,'()-"), min_size=1, max_size=20).filter(
    lambda text: text == " ".join(text.split())
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.builds(Triple, name, name, name), max_size=4), st.sampled_from(["fully_expanded", "subject_collapsed"])
)
def test_any_names_come_back(triples: list[Triple], form: Form) -> None:
    fmt = SequenceFormat(FREE, form)
    assert fmt.triples(fmt.answer_ids(triples)) == list(dict.fromkeys(triples))


FREE = byte_level(lstrip=False)


def test_a_cut_output_loses_the_unfinished_fact_only() -> None:
    whole = SequenceFormat(byte_level(), "fully_expanded")
    ids = whole.answer_ids(TRIPLES)
    assert whole.triples(ids[:-1]) == TRIPLES  # [e] is there
    assert whole.triples(ids[:-2]) == TRIPLES[:1]  # "Hudson River" may go on
    collapsed = SequenceFormat(byte_level(), "subject_collapsed")
    ids = collapsed.answer_ids(TRIPLES)
    second = ids.index(collapsed.markers.relation[0], ids.index(collapsed.markers.object[0]))
    assert collapsed.triples(ids[:second]) == []
    assert collapsed.triples(ids[: second + 1]) == TRIPLES[:1]  # the next marker closes the first object
    assert collapsed.triples(ids[:-2]) == TRIPLES[:1]
    assert collapsed.triples(ids[:-1]) == TRIPLES


def test_sentencepiece_names_stand_alone_as_they_do_in_text() -> None:
    fmt = SequenceFormat(sentencepiece_like())
    assert fmt.lead == ""
    ids = fmt.answer_ids(TRIPLES[:1])
    assert fmt.triples(ids) == TRIPLES[:1]
    text = fmt.tokenizer.encode("on New York City country", add_special_tokens=False)
    piece = fmt.name_ids(["New York City"])[0]
    assert any(text[i : i + len(piece)] == piece for i in range(len(text)))
    assert SequenceFormat(byte_level()).lead == " "


def test_fingerprint_tells_vocabularies_apart_and_not_padding() -> None:
    first, second = byte_level(), byte_level()
    second("a b", padding="max_length", max_length=5, truncation=True)  # type: ignore[operator]
    assert SequenceFormat(first).fingerprint == SequenceFormat(second).fingerprint
    assert SequenceFormat(first).fingerprint != SequenceFormat(byte_level(lstrip=False)).fingerprint


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.eos_token = None  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="eos_token"):
        SequenceFormat(tokenizer)


def test_order_is_that_of_the_mentions() -> None:
    text = "Oslo, the capital of Norway, lies on the Oslo Fjord; Bergen is older."
    triples = [
        Triple("Bergen", "country", "Norway"),
        Triple("Nowhere", "country", "Norway"),
        Triple("Oslo", "near", "Oslo Fjord"),
        Triple("Oslo", "capital of", "Kingdom of Norway"),  # found by its longest run of words there: "norway"
    ]
    assert order_by_mention(triples, text) == [triples[3], triples[2], triples[0], triples[1]]
