from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.check import Checker, CheckSettings
from obverse.engine.check.duplicates import Fingerprints, HeldOutIndex, make_index
from obverse.engine.check.rows import Target, target_key
from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Triple
from obverse.engine.records.schemas import CHECKS, TARGETS, TEXTS, TRIPLETS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def triplet(subject: str, predicate: str, object_: str) -> dict[str, Any]:
    names = {"subject": subject, "predicate": predicate, "object": object_}
    return {role: {"uri": f"u:{name}", "surfaceform": name} for role, name in names.items()}


def tables(*rows: tuple[Any, ...], first: int = 0) -> tuple[pa.Table, pa.Table]:
    """Rows (text, triplets or label, finish reason) as targets and texts."""
    targets, texts = [], []
    for number, (text, target, *finish) in enumerate(rows, start=first):
        is_label = isinstance(target, str)
        targets.append(
            {"id": number, "triplets": None if is_label else target, "label": target if is_label else None}
            | {"attributes": None, "is_real": False}
        )
        texts.append({"id": number, "text": text, "finish_reason": finish[0] if finish else "stop"})
    return pa.Table.from_pylist(targets, schema=TARGETS), pa.Table.from_pylist(texts, schema=TEXTS)


LYON = [triplet("Lyon", "located in", "France"), triplet("Lyon", "twinned with", "Turin")]
OSLO = [triplet("Oslo", "capital of", "Norway")]


def test_each_reason_and_each_column() -> None:
    rows = [
        ("Lyon lies in France and is a twin of Turin.", LYON),
        (None, LYON, "error: the server is gone"),
        (None, LYON, None),
        ("Lyon lies in France, twinned with Tur", LYON, "length"),
        ("Lyon", LYON),
        ("Lyon, France, Turin: " + "words " * 20, LYON),
        ("[s] Lyon [r] located in [o] France, Turin", LYON),
        ("Лион, Лион и Лион: Lyon, France, Turin и так далее", LYON),
        ("Lyon lies in France and nowhere else.", LYON),
        ("Oslo is where the king of Norway lives.", OSLO),
        ("LYON lies in France and is a  twin of Turin.", LYON),
        ("Oslo is, as many know, the capital city of Norway", OSLO, "given"),
    ]
    held_out = pa.table(
        {"id": [70], "text": ["Oslo is where the King of Norway lives."]},
    )
    checker = Checker(CheckSettings(max_chars=100, scripts=("latin",)), held_out=held_out)
    result = checker.check(*tables(*rows))
    assert result.schema == CHECKS
    assert result["id"].to_pylist() == list(range(12))
    assert result["reason"].to_pylist() == [
        None,
        "error: the server is gone",
        "error: no text",
        "truncated: length",
        "length: 4 characters, at least 10",
        "length: 140 characters, at most 100",
        "echo: [s]",
        "script: 41% of letters in latin",
        "mention: 2 of 3 entities",
        "leak: text of held-out row 70",
        "duplicate: of row 0",
        None,
    ]
    assert result["kept"].to_pylist() == [reason is None for reason in result["reason"].to_pylist()]
    recall = result["mention_recall"].to_pylist()
    assert recall[:5] == [1.0, None, None, pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert result["num_chars"].to_pylist()[:5] == [43, None, None, 37, 4]
    assert result["prompt_echo"].to_pylist()[5:8] == [False, True, False]
    assert result["duplicate_of"].to_pylist() == [None] * 10 + [0, None]
    assert result["leak_of"].to_pylist() == [None] * 9 + [70, None, None]


def test_switched_off() -> None:
    lenient = CheckSettings(min_mention_recall=0.0, min_chars=0, drop_truncated=False, drop_echo=False)
    result = Checker(lenient).check(*tables(("[s] Lyon", LYON, "length"), ("", OSLO)))
    assert result["kept"].to_pylist() == [True, True]
    assert result["prompt_echo"].to_pylist() == [True, False]
    assert result["mention_recall"].to_pylist() == [pytest.approx(1 / 3), 0.0]


@pytest.mark.parametrize(("least", "kept"), [(0.66, True), (2 / 3, True), (0.67, False)])
def test_recall_threshold(least: float, kept: bool) -> None:
    checks = Checker(CheckSettings(min_mention_recall=least)).check(*tables(("Lyon is in France.", LYON)))
    assert checks["kept"].to_pylist() == [kept]


def test_settings_refuse() -> None:
    with pytest.raises(pydantic.ValidationError, match="max_chars"):
        CheckSettings(min_chars=10, max_chars=5)
    with pytest.raises(pydantic.ValidationError):
        CheckSettings(scripts=("klingon",))  # type: ignore[arg-type]
    with pytest.raises(pydantic.ValidationError):
        CheckSettings(near_duplicate=0.0)
    assert len(CheckSettings.model_fields) <= 10


def test_a_bad_text_does_not_drive_out_a_good_one() -> None:
    text = "Lyon lies in France and is a twin of Turin."
    checks = Checker(CheckSettings()).check(*tables((text, LYON, "length"), (text, LYON), (text, LYON)))
    assert checks["kept"].to_pylist() == [False, True, False]
    assert checks["duplicate_of"].to_pylist() == [None, None, 1]


def test_near_duplicates_and_exact_only() -> None:
    text = "The old town of Lyon lies in France by the Rhone, and it has been a twin of Turin for many years"
    rows = [(text + ".", LYON), (text + "!", LYON), (text.upper() + ".", LYON), ("Turin, Lyon, France.", LYON)]
    near = Checker(CheckSettings(near_duplicate=0.8)).check(*tables(*rows))
    assert near["duplicate_of"].to_pylist() == [None, 0, 0, None]
    exact = Checker(CheckSettings(near_duplicate=1.0)).check(*tables(*rows))
    assert exact["duplicate_of"].to_pylist() == [None, None, 0, None]


def test_leak_by_triplets_in_any_order_and_form() -> None:
    held_out = pa.table(
        {
            "id": [5, 6],
            "text": ["something else entirely", "and again"],
            "triplets": pa.array(
                [
                    [
                        {role: {"uri": None, "surfaceform": name} for role, name in zip(
                            ("subject", "predicate", "object"), names, strict=True
                        )}
                        for names in (("lyon", "Twinned_with", "Turin"), ("Lyon", "located in", "FRANCE"))
                    ],
                    None,
                ],
                TRIPLETS,
            ),
        }
    )  # fmt: skip
    rows = tables(("Lyon is in France and twinned with Turin.", LYON), ("Lyon and France.", LYON[:1]))
    checks = Checker(CheckSettings(), held_out=held_out).check(*rows)
    assert checks["leak_of"].to_pylist() == [5, None]
    assert checks["reason"].to_pylist() == ["leak: triplets of held-out row 5", None]
    off = Checker(CheckSettings(leak_targets=False), held_out=held_out).check(*rows)
    assert off["kept"].to_pylist() == [True, True]


def test_target_keys_are_of_sets() -> None:
    triples = [Triple(f"City {n}", "located in", f"Country {n % 3}") for n in range(9)]
    key = target_key(Target(triples, []))
    assert key == target_key(Target([*reversed(triples), triples[0]], []))
    assert key != target_key(Target(triples[1:], []))
    turned = [Triple(triple.object, triple.predicate, triple.subject) for triple in triples]
    assert key != target_key(Target(turned, []))


def test_classification_leaks_by_text_only() -> None:
    held_out = pa.table({"id": [1], "text": ["What a lovely day, again."], "label": ["1"]})
    rows = tables(("what a  lovely day, again.", "1"), ("Not at all the same thing.", "1"))
    checks = Checker(CheckSettings(leak=1.0), held_out=held_out).check(*rows)
    assert checks["leak_of"].to_pylist() == [1, None]
    assert checks["mention_recall"].to_pylist() == [None, None]


def test_held_out_texts_that_repeat_each_other_are_all_found() -> None:
    words = [f"word{number}" for number in range(60)]

    def text(*changed: int) -> str:
        return " ".join(f"other{n}" if n in changed else word for n, word in enumerate(words))

    # B is near A, C near B but not near A: an index that keeps only A would miss C.
    a, b, c = text(), text(*range(4)), text(*range(8))
    prints = Fingerprints([a, b, c])
    first = make_index(0.8)
    assert first.insert_or_find(np.arange(3), prints).tolist() == [-1, 0, -1]
    alone = make_index(0.8)
    alone.insert_or_find(np.array([0]), prints.take(np.array([0])))
    assert alone.find(prints).tolist() == [0, 0, -1]
    held = HeldOutIndex(0.8, np.array([10, 11, 12]), [a, b, a])
    assert held.find(prints).tolist() == [10, 10, 11]


def test_targets_in_another_order_and_missing() -> None:
    targets, texts = tables(("Lyon, France and Turin.", LYON), ("Oslo in Norway.", OSLO))
    expected = Checker(CheckSettings()).check(targets, texts)
    assert Checker(CheckSettings()).check(targets.take([1, 0]), texts).equals(expected)
    assert expected["kept"].to_pylist() == [True, True]
    with pytest.raises(InputError, match=r"row 1.*'id'.*target.*saw 1"):
        Checker(CheckSettings()).check(targets.slice(0, 1), texts)


def test_a_triplet_without_surface_form_is_named() -> None:
    broken = [triplet("Oslo", "capital of", "Norway")]
    broken[0]["object"]["surfaceform"] = None
    with pytest.raises(InputError, match=r"row 1.*triplets"):
        Checker(CheckSettings()).check(*tables(("Lyon, France, Turin", LYON), ("Oslo.....", broken)))


def test_empty_and_sliced_batches() -> None:
    targets, texts = tables(("Lyon, France and Turin.", LYON), ("Oslo in Norway.", OSLO), (None, "x"))
    empty = Checker(CheckSettings()).check(targets.slice(0, 0), texts.slice(0, 0))
    assert empty.num_rows == 0
    assert empty.schema == CHECKS
    one = Checker(CheckSettings()).check(targets.slice(1, 1), texts.slice(1, 1))
    assert one["mention_recall"].to_pylist() == [1.0]
    chunked = pa.concat_tables([targets.slice(0, 1), targets.slice(1)])
    assert Checker(CheckSettings()).check(chunked, texts).equals(Checker(CheckSettings()).check(targets, texts))


WORDS = st.sampled_from(["lyon", "france", "turin", "oslo", "norway", "[e]", "is", "a", "very old city", "of"])
ROW = st.tuples(st.none() | st.lists(WORDS, max_size=8).map(" ".join), st.sampled_from([LYON, OSLO, "label"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, max_size=14), st.integers(0, 14), st.integers(0, 14), st.sampled_from([0.6, 1.0]))
def test_batch_boundaries_and_replay_change_nothing(
    rows: list[tuple[Any, ...]], cut: int, killed: int, threshold: float
) -> None:
    targets, texts = tables(*rows)
    limits = CheckSettings(min_chars=1, min_mention_recall=0.3, near_duplicate=threshold)
    whole = Checker(limits).check(targets, texts)
    checker = Checker(limits)
    parts = [checker.check(targets, texts.slice(*span)) for span in ((0, cut), (cut, None))]
    assert pa.concat_tables(parts).equals(whole)
    for known in (None, whole.slice(0, killed)):
        again = Checker(limits)
        again.replay(targets, texts.slice(0, killed), known)
        assert again.check(targets, texts.slice(killed)).equals(whole.slice(killed))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="ab ", max_size=4), max_size=12))
def test_exact_index_against_a_plain_search(texts: list[str]) -> None:
    index = make_index(1.0)
    got = index.insert_or_find(np.arange(len(texts)), Fingerprints(texts)).tolist()
    assert got == [first if (first := texts.index(text)) < row else -1 for row, text in enumerate(texts)]


def test_real_generated_texts() -> None:
    path = DATA / "wiki_cie_text.jsonl.gz"
    if not path.exists():
        pytest.skip("needs shared/data")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    targets, texts = tables(*((record["text"], record["triplets"]) for record in records))
    checks = Checker(CheckSettings()).check(targets, texts)
    reasons = [(reason or "kept").split(":")[0] for reason in checks["reason"].to_pylist()]
    assert set(reasons) <= {"kept", "mention", "duplicate", "length"}
    # These texts were written from Wikipedia titles by a large model: most name all, some rephrase.
    assert 0.4 < reasons.count("kept") / len(reasons) < 1.0
    by_hand = {  # read by eye
        "Harry Agar Lyons was an actor.": 1.0,
    }
    recall = dict(zip(texts["text"].to_pylist(), checks["mention_recall"].to_pylist(), strict=True))
    assert {text: recall[text] for text in by_hand} == by_hand
