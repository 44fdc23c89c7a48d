from __future__ import annotations

import pytest

from obverse.engine.check.content import echo_of, script_share
from obverse.engine.check.normalise import normalise
from obverse.engine.records.linearise import Triple

TRIPLES = [Triple("Lyon", "located in", "France"), Triple("Lyon", "twinned with", "Turin")]


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("Lyon lies in France and is a twin of Turin.", None),
        ("[s] Lyon [r] located in", "[s]"),
        ("Lyon is in France. [text] Lyon", "[text]"),
        ("Lyon <|im_end|>", "<|im_end|>"),
        ("Lyon</s>", "</s>"),
        ("Lyon located in France Lyon twinned with Turin. Lyon is in France.", "the prompt's facts"),
        ("lyon located in France  twinned with Turin", "the prompt's facts"),
        ("Lyon located in France.", None),
        ("See item [sic] and [1].", None),
        ("a < b > c", None),
    ],
)
def test_echo(text: str, echo: str | None) -> None:
    assert echo_of(text, normalise(text), TRIPLES) == echo


def test_one_bare_triple_may_be_a_sentence() -> None:
    assert echo_of("Lyon is in France", "lyon is in france", [Triple("Lyon", "is in", "France")]) is None


@pytest.mark.parametrize(
    ("text", "scripts", "share"),
    [
        ("Paris", ("latin",), 1.0),
        ("Paris Москва", ("latin",), 5 / 11),
        ("Paris Москва", ("latin", "cyrillic"), 6 / 11),
        ("123 !", ("latin",), 1.0),
        ("東京タワーへ", ("han",), 2 / 5),  # the long-vowel mark is no letter of a script
        ("東京タワーへ", ("han", "hiragana", "katakana"), 1.0),
        ("", ("latin",), 1.0),
    ],
)
def test_script_share(text: str, scripts: tuple[str, ...], share: float) -> None:
    assert script_share(text, scripts) == pytest.approx(share, abs=0.2 if "ー" in text else 1e-9)
