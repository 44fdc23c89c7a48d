"""Examples before prompts: which, in what order, and that rows of one relation share all that stands before them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.generate import Completion, GenerateSettings, Request, build_prompt, generate
from obverse.engine.generate.few_shot import FewShot
from obverse.engine.generate.prompts import build_prompts
from obverse.engine.generate.settings import FewShotSettings

RELATIONS = ["lies in", "wrote", "born in"]


def triplet(subject: str, predicate: str, thing: str) -> dict[str, Any]:
    parts = {"subject": subject, "predicate": predicate, "object": thing}
    return {role: {"uri": "x:y", "surfaceform": name} for role, name in parts.items()}


def example(i: int) -> dict[str, Any]:
    """Example i is of relation i % 3, each fifth of two."""
    triplets = [triplet(f"E{i}", RELATIONS[i % 3], f"F{i}")]
    if i % 5 == 0:
        triplets.append(triplet(f"E{i}", RELATIONS[(i + 1) % 3], f"G{i}"))
    return {"text": f"Text {i}.", "triplets": triplets, "label": f"label {i % 2}", "note": f"note {i}"}


EXAMPLES = [example(i) for i in range(30)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    return path


def targets(count: int = 60) -> pa.Table:
    rows = [{"id": i, "triplets": [triplet(f"S{i}", RELATIONS[i % 3], f"O{i}")], "label": None} for i in range(count)]
    return pa.Table.from_pylist(rows)


def settings_for(file: Path, prompt: str = "instruct", **few_shot: Any) -> GenerateSettings:
    return GenerateSettings(model="x/y", prompt=prompt, few_shot={"examples": file, **few_shot})


def shown(text: str) -> list[int]:
    """The numbers of the examples in a prompt, in order."""
    return [int(part.split(".")[0]) for part in text.split("Text ")[1:] if part.split(".")[0].isdigit()]


@pytest.mark.parametrize("prompt", ["facts", "instruct"])
def test_rows_of_one_relation_share_everything_before_their_own_part(file: Path, prompt: str) -> None:
    made = build_prompts(targets(), settings_for(file, prompt), seed=1)
    heads: dict[str, set[str]] = {}
    for i, text in enumerate(made.texts):
        assert text is not None
        head, own, _ = text.partition("[s] S" if prompt == "facts" else f"- S{i} |")
        assert own
        heads.setdefault(RELATIONS[i % 3], set()).add(head)
        assert len(shown(head)) == 3
        assert all(
            RELATIONS[i % 3] in {t["predicate"]["surfaceform"] for t in EXAMPLES[k]["triplets"]} for k in shown(head)
        )
    assert [len(found) for found in heads.values()] == [1, 1, 1]
    assert len(set.union(*heads.values())) == 3
    assert made.chat is (prompt == "instruct")


def test_instruct_shows_examples_between_the_instruction_and_the_row(file: Path) -> None:
    text = build_prompt(targets(1).to_pylist()[0], settings_for(file, shots=2), seed=1).text
    first, second = (EXAMPLES[k] for k in shown(text))
    plain = build_prompt(targets(1).to_pylist()[0], GenerateSettings(model="x/y", prompt="instruct")).text
    instruction, own = plain.split("Facts (subject")
    lines = [
        "".join("- {} | {} | {}\n".format(*(t[r]["surfaceform"] for r in t)) for t in e["triplets"])
        for e in (first, second)
    ]
    middle = "".join(
        f"\nFacts (subject | relation | object):\n{rows}\nPassage: {e['text']}\n"
        if rows.endswith("\n\n")
        else f"\nFacts (subject | relation | object):\n{rows}Passage: {e['text']}\n"
        for rows, e in zip(lines, (first, second), strict=True)
    )
    assert text == f"{instruction}{middle}\nFacts (subject{own}"


def test_labels_choose_and_fill_up(file: Path) -> None:
    rows = [{"id": i, "label": label} for i, label in enumerate(["label 0", "label 1", "unseen", None, "label 0"])]
    texts = build_prompts(pa.Table.from_pylist(rows), settings_for(file, "label", shots=4), seed=1).texts
    found = [shown(text or "") for text in texts]
    assert all(k % 2 == 0 for k in found[0])
    assert all(k % 2 == 1 for k in found[1])
    assert [len(f) for f in found] == [4, 4, 4, 0, 4]  # none of an unseen label: others; no label: no prompt
    assert found[4] == found[0]
    texts = build_prompts(pa.Table.from_pylist(rows), settings_for(file, "label", shots=20), seed=1).texts
    found = [shown(text or "") for text in texts]
    assert all(k % 2 == 0 for k in found[0][:15])  # those of the label first
    assert all(k % 2 == 1 for k in found[0][15:])
    assert len(set(found[0])) == 20
    texts = build_prompts(pa.Table.from_pylist(rows), settings_for(file, "label", shots=40), seed=1).texts
    assert len(shown(texts[0] or "")) == 30  # all there are


def test_none_gives_every_row_the_same_and_seeds_differ(file: Path) -> None:
    settings = settings_for(file, examples_by="none")
    every = {tuple(shown(text or "")) for text in build_prompts(targets(), settings, seed=1).texts}
    assert len(every) == 1
    seeds = {tuple(shown(build_prompt(targets(1).to_pylist()[0], settings, seed).text)) for seed in range(8)}
    assert len(seeds) > 4


def test_the_order_of_the_file_and_repeats_in_it_change_nothing(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    rows = [row | {"id": k} for k, row in enumerate([*EXAMPLES, *EXAMPLES[:7]])]
    random.Random(3).shuffle(rows)
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = (build_prompts(targets(), settings_for(path), seed=1) for path in (file, other))
    assert one == two


def test_a_row_is_never_shown_itself(file: Path) -> None:
    table = pa.Table.from_pylist([{"id": i} | {k: e[k] for k in ("triplets", "label")} for i, e in enumerate(EXAMPLES)])
    made = build_prompts(table, settings_for(file, shots=9), seed=1)
    usual = {tuple(shown(t or "")) for t in build_prompts(targets(), settings_for(file, shots=9), seed=1).texts}
    held_out = 0
    for i, text in enumerate(made.texts):
        numbers = shown(text or "")
        assert i not in numbers
        assert len(numbers) == 9
        held_out += tuple(numbers) not in usual
    assert 0 < held_out < 30  # only rows that would have been shown get others
    reversed_order = pa.Table.from_pylist([{"id": 0, "triplets": EXAMPLES[5]["triplets"][::-1]}])
    assert 5 not in shown(build_prompts(reversed_order, settings_for(file, shots=29), seed=1).texts[0] or "")
    by_text = pa.Table.from_pylist([{"id": 0, "label": "label 0", "text": "Text 4."}])
    assert 4 not in shown(build_prompts(by_text, settings_for(file, "label", shots=29), seed=1).texts[0] or "")


def test_a_template_of_ones_own_places_them(file: Path) -> None:
    template = "{% for e in examples %}{{ e.note }}: {{ e.facts }} = {{ e.text }}\n{% endfor %}{{ facts }}"
    table = targets()
    settings = settings_for(file, template, shots=2)
    made = build_prompts(table, settings, seed=1)
    assert made.texts == [build_prompt(row, settings, 1).text for row in table.to_pylist()]
    assert all(text is not None and text.count("note ") == 2 and "[s] E" in text for text in made.texts)
    # Without a file a template may still speak of them: there are none.
    bare = build_prompts(table, GenerateSettings(model="x/y", prompt=template), seed=1)
    assert bare.texts[0] == "[s] S0 [r] lies in [o] O0 [e]"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": " ", "label": "a"}, r"examples\.jsonl, row 2, field 'text': expected a text"),
        ({"label": "a"}, r"examples\.jsonl, row 2, field 'text': expected a text"),
        ({"text": "a", "triplets": [{"subject": "b", "predicate": "c"}]}, r"row 2, field 'triplets\[0\]\.object'"),
    ],
)
def test_a_wrong_example_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"text": "t", "label": "a"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said):
        FewShot(FewShotSettings(examples=file), 0)


def test_examples_that_lack_what_the_prompt_shows(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text("")
    with pytest.raises(InputError, match="at least one example"):
        FewShot(FewShotSettings(examples=file), 0)
    with pytest.raises(InputError, match="an existing file"):
        FewShot(FewShotSettings(examples=tmp_path / "none.jsonl"), 0)
    file.write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(RecipeError, match="has no row with triplets, which the prompt shows"):
        build_prompts(targets(3), settings_for(file), seed=1)


class Echo:
    """A backend that writes its prompts' first line back and keeps them in the order they came."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        for request in requests:
            self.prompts.append(request.prompt)
            yield Completion(request.id, "text", "stop", 1, 1)

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def test_the_stage_uses_the_runs_seed_and_feeds_equal_prefixes_together(file: Path) -> None:
    table, settings = targets(), settings_for(file)
    for seed in (1, 2):
        backend = Echo()
        generate(table, settings, seed=seed, backend=backend)
        assert sorted(backend.prompts) == sorted(str(t) for t in build_prompts(table, settings, seed=seed).texts)
        heads = [prompt.split("- S")[0] for prompt in backend.prompts]
        assert sum(a != b for a, b in itertools.pairwise(heads)) == 2  # three runs of one prefix each
