from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from obverse.engine.check.normalise import is_boundary, normalise, normalise_lines, occurrences, script_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  New_York\t City\n", "new york city"),
        ("Düsseldorf", "dusseldorf"),
        ("Du\u0308sseldorf", "dusseldorf"),
        ("ＴＯＫＹＯ", "tokyo"),
        ("Straße", "strasse"),
        ("Łódź", "lodz"),
        ("İstanbul", "istanbul"),
        ("Diyarbakır", "diyarbakir"),
        ("L’Aquila", "l'aquila"),
        ("L´Aquila", "l'aquila"),
        ("Saint–Denis", "saint-denis"),
        ("a\u00a0b", "a b"),
        ("zero\u200bwidth", "zerowidth"),
        ("ﬁnance", "finance"),
        ("القَاهِرَة", "القاهرة"),
        ("दिल्ली", "दिल्ली"),  # vowel signs and virama stay
        ("ぎふ", "ぎふ"),  # voicing marks stay
        ("서울", "서울"),
        ("", ""),
        (" _ ", ""),
    ],
)
def test_known_forms(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_distinct_names_stay_distinct() -> None:
    assert normalise("ぎふ") != normalise("きふ")
    assert normalise("दिल्ली") != normalise("दल")


@given(st.text(max_size=40))
@example("´")
@example("ß_\u0130")
@example("\u1e9e\u0345")
def test_idempotent(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


@example(["`", "\x80"])  # the short way for ASCII must fold what the long way folds
@given(st.lists(st.text(max_size=12), max_size=6))
def test_lines_equal_one_by_one(texts: list[str]) -> None:
    got = normalise_lines(texts)
    expected = [normalise(text) for text in texts]
    assert [line.strip(" ") for line in got.split("\n")] == (expected or [""])


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("paris, paris and parisian", "paris", 2),
        ("comparison", "paris", 0),
        ("paris's", "paris", 1),
        ("route 66", "route 6", 0),
        ("in 1989年", "1989", 1),
        ("東京都は", "東京", 1),
        ("서울은", "서울", 1),
        ("在paris的", "paris", 1),
        ("u.s.a", "u.s.", 1),
        ("กรุงเทพมหานคร", "กรุงเทพ", 1),
        ("दिल्लीवाला", "दिल्ली", 0),
        ("दिल्ली में", "दिल्ली", 1),
        ("दिल्ली", "दिल", 0),  # a following vowel sign belongs to the word
        ("aaa", "a", 0),
        ("a a", "a", 2),
        ("x", "", 0),
    ],
)
def test_whole_words(text: str, name: str, count: int) -> None:
    assert len(list(occurrences(text, name))) == count


@given(st.text(alphabet="ab 東é.", max_size=12), st.text(alphabet="ab 東é.", min_size=1, max_size=3))
def test_occurrences_are_all_bounded_matches(text: str, name: str) -> None:
    expected = [
        (start, start + len(name))
        for start in range(len(text) - len(name) + 1)
        if text[start : start + len(name)] == name and is_boundary(text, start) and is_boundary(text, start + len(name))
    ]
    assert list(occurrences(text, name)) == expected


@pytest.mark.parametrize(
    ("char", "script"), [("a", "latin"), ("Ж", "cyrillic"), ("漢", "han"), ("か", "hiragana"), ("1", ""), (" ", "")]
)
def test_scripts(char: str, script: str) -> None:
    assert script_of(char) == script
