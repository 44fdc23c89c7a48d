from __future__ import annotations

import pytest

from obverse.engine.check.mention import Entity, MentionMatcher
from obverse.engine.check.normalise import normalise


def found(text: str, *entities: Entity, aliases: dict[str, list[str]] | None = None) -> int:
    return MentionMatcher(aliases).found(normalise(text), entities)


def test_by_name_and_alias() -> None:
    entities = Entity("Q1", "New_York City"), Entity("Q2", "Deutschland"), Entity(None, "Nowhere")
    aliases = {"Q1": ["NYC"], "Q2": ["Germany", "Federal Republic of Germany"], "Q9": ["Nowhere"]}
    assert found("NYC isn't in Germany.", *entities, aliases=aliases) == 2
    assert found("new york  city", *entities, aliases=aliases) == 1
    assert found("NYC isn't in Germany.", *entities) == 0


def test_short_aliases_do_not_count_but_short_names_do() -> None:
    aliases = {"Q1": ["US"], "Q2": ["巴黎"], "Q3": ["日"]}
    assert found("The US won.", Entity("Q1", "United States"), aliases=aliases) == 0
    assert found("他住在巴黎。", Entity("Q2", "Paris"), aliases=aliases) == 1
    assert found("日は", Entity("Q3", "Japan"), aliases=aliases) == 0
    assert found("Y is a village.", Entity("Q4", "Y")) == 1


def test_not_inside_a_longer_word() -> None:
    assert found("Parisians like Texan food", Entity(None, "Paris"), Entity(None, "Texa")) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mexico City is large.", 1),
        ("Mexico City is the capital of Mexico.", 2),
        ("Ciudad de México is large.", 1),  # an alias of the other hides it too
        ("Mexico is large.", 1),
    ],
)
def test_a_name_inside_a_longer_name_of_another_entity(text: str, count: int) -> None:
    entities = Entity("Q1", "Mexico City"), Entity("Q2", "Mexico")
    assert found(text, *entities, aliases={"Q1": ["Ciudad de México"]}) == count


def test_an_entity_is_not_hidden_by_its_own_longer_alias() -> None:
    aliases = {"Q1": ["New York City"]}
    assert found("New York City", Entity("Q1", "New York"), Entity("Q2", "Texas"), aliases=aliases) == 1


def test_same_name_counts_for_both() -> None:
    assert found("Luxembourg.", Entity("Q1", "Luxembourg"), Entity("Q2", "Luxembourg")) == 2


def test_an_empty_alias_never_matches() -> None:
    assert found("Some text.", Entity("Q1", "Absent"), aliases={"Q1": ["", " ", "\n\n\n", "a\nb"]}) == 0


def test_a_closing_parenthesis_need_not_be_written() -> None:
    georgia = Entity("Q1", "Georgia_(U.S._state)")
    assert found("Atlanta is in Georgia.", georgia) == 1
    assert found("Atlanta is in Georgia (U.S. state).", georgia) == 1
    assert found("Atlanta is in GA, a state.", georgia) == 0
    assert found("Atlanta is in the Peach State.", georgia, aliases={"Q1": ["Peach State"]}) == 1
    assert found("Any text at all", Entity(None, "(text)"), Entity(None, "f(x)")) == 0
