from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.report import render as render_module
from obverse.engine.report import render_report


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.03, "high": value + 0.02}


def extraction(f1: float) -> dict[str, Any]:
    means = {part: interval(f1 + shift) for part, shift in (("precision", 0.05), ("recall", -0.05), ("f1", 0.0))}
    rows = [{"triplets": n, "records": 40 - n, **means} for n in (1, 2, 3)]
    relations = [
        {"relation": name, "gold": 30, "predicted": 28, "correct": 20, "f1": interval(f1)}
        for name in ("borders", "capital")
    ]
    return {
        "task": "extraction",
        "records": 117,
        "confidence": 0.95,
        "micro": means,
        "macro": means | {"relations": 2},
        "macro_gold": means,
        "exact_match": interval(0.2),
        "catalogue_share": 1.0,
        "by_triplets": rows,
        "per_relation": relations,
    }


def sample(row: int, text: str, **other: Any) -> dict[str, Any]:
    return {"id": row, "text": text, "triplets": [["Oslo", "country", "Norway"]], "note": "a note", **other}


def comparison(a: str, b: str, metric: str, *numbers: float) -> dict[str, Any]:
    found = dict(zip(("difference", "low", "high", "p_value"), numbers, strict=True))
    return {"set": "written", "a": a, "b": b, "metric": metric, **found}


def full() -> dict[str, Any]:
    curve = [[step, 4.0 / (1 + step / 100)] for step in range(0, 1000, 10)]
    return {
        "run": {
            "name": "a run",
            "task": "extraction",
            "seed": 5,
            "obverse": "0.1.0",
            "started": "2025-01-02 03:04",
            "seconds": 492.4,
            "hardware": {"cpu": "some cpu", "cores": 2, "gpu": None},
            "packages": {"torch": "2.13.0"},
        },
        "stages": {
            "sample": {"rows": 5000, "seconds": 0.4, "rate": 12136, "unit": "sets/s"},
            "generate": {"rows": 5000, "seconds": 241.3, "rate": 20.7, "unit": "texts/s"},
        },
        "sample": {
            "graph_relations": {"country": 235000, "borders": 640, "capital": 240, "never": 3},
            "drawn_relations": {"country": 900, "borders": 500, "capital": 450},
            "set_sizes": {"1": 500, "2": 900, "10": 3},
            "gini_graph": 0.74,
            "gini_drawn": 0.31,
        },
        "generate": {
            "backend": {"name": "vllm", "model": "demo", "greedy": False},
            "throughput": [[s, 20 * s, 800 * s + (s % 7) * 30] for s in range(0, 240, 3)],
            "finish_reasons": {"stop": 4981, "length": 19},
            "output_tokens": 190000,
            "tokens_per_s": 800.0,
        },
        "check": {
            "rows": 5000,
            "kept": 4312,
            "dropped": {"mention_recall": 588, "near_duplicate": 100},
            "mention_recall": [0] * 10 + [30] * 10 + [4700],
        },
        "score": {
            "metrics": {"vendi": 212.4, "mean_pairwise_cosine": 0.213, "distinct_2": 0.4, "own_measure": 7.0},
            "index": {"choice": "flat", "recall": 1.0},
            "mean_knn_distance": {"edges": [0.0, 0.1, 0.2, 0.4], "counts": [3, 20, 5]},
        },
        "weigh": {
            "scheme": "dimp",
            "ess": 3021.4,
            "ess_share": 0.7,
            "clipped_low": 11,
            "clipped_high": 0.02,
            "quantiles": {"0.5": 0.86, "0.99": 4.1},
            "histogram": {"edges": [0.1, 0.5, 1.0, 5.0], "counts": [5, 20, 9]},
            "mass_by_group": {"borders": 30.0, "capital": 70.0},
            "warnings": ["a few rows carry most of the weight"],
        },
        "train": {
            name: {"loss": curve, "seconds": 43.1, "tokens_per_s": 12100, "selection": [[250, 0.4], [500, 0.5]]}
            for name in ("ce", "dimp")
        },
        "evaluate": {
            "written": {
                "ce/free": extraction(0.44),
                "dimp/free": extraction(0.5),
                "dimp/constrained": extraction(0.58),
            },
            "synthetic": {"dimp/constrained": extraction(0.8)},
        },
        "comparisons": [
            comparison("dimp/constrained", "dimp/free", "micro_f1", 0.08, 0.04, 0.12, 0.002),
            comparison("ce/free", "dimp/free", "macro_f1", -0.06, -0.13, 0.01, 0.11),
        ],
        "samples": {
            "good": [sample(12, "Oslo is in Norway.")],
            "dropped": [sample(13, "Oslo.")],
            "extractions": [sample(14, "great film", label="positive", triplets=[])],
        },
    }


def classification() -> dict[str, Any]:
    scores = {part: interval(0.8) for part in ("precision", "recall", "f1")}
    result = {
        "task": "classification",
        "records": 872,
        "confidence": 0.9,
        "accuracy": interval(0.81),
        "macro": scores,
        "per_class": [{"label": name, "gold": 436, **scores} for name in ("negative", "positive")],
        "confusion": {"labels": ["negative", "positive"], "counts": [[360, 76], [80, 356]], "unlabelled": [0, 0]},
    }
    return {
        "run": {"name": "sentiment", "task": "classification"},
        "evaluate": {"real": {"ce": result, "dimp": result}},
    }


def render(metrics: object, folder: Path, recipe: str | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if recipe is not None:
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return render_report(folder).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Every tag, attribute and text of a page, and whether its tags close in order."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the template once: these tests render hundreds of pages."""
    environment = render_module._environment()
    monkeypatch.setattr(render_module, "_environment", lambda: environment)


def drawings(source: str) -> list[ElementTree.Element]:
    parts = source.split("<svg ")[1:]
    return [ElementTree.fromstring("<svg " + part.split("</svg>")[0] + "</svg>") for part in parts]


def test_report_full_page_has_every_section_and_number(tmp_path: Path) -> None:
    page = Page(render(full(), tmp_path, "seed = 5\n[sample]\nsets = 5000"))
    assert page.open == []
    anchors = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert anchors == [
        "scores", "coverage", "generation", "checks", "diversity", "weights", "training", "samples", "made",
    ]  # fmt: skip
    for shown in (
        "5,000", "4,312", "86% of 5,000", "8 min 12 s", "58.0", "50.0", "55.0–60.0", "from 0.74 in the graph to 0.31",
        "3 of 4 relations were drawn", "−588", "212", "own measure", "3,021 (70% of rows)", "11 rows", "2.0%",
        "a few rows carry most of the weight", "Recipe", "sets = 5000", "some cpu", "2.13.0", "20.7 texts/s",
        "On “written”, constrained DIMP is 8.0 points of micro-F1 better than unconstrained DIMP "
        "(interval +4.0 to +12.0, p = 0.002).",
        "On “written”, no clear difference in macro-F1: unconstrained CE against unconstrained DIMP is −6.0 points "
        "(interval −13.0 to +1.0, p = 0.11).",
    ):  # fmt: skip
        assert shown in page.text, shown


def test_report_is_self_contained(tmp_path: Path) -> None:
    source = render(full(), tmp_path, "x = 1")
    page = Page(source)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "img", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), attrs
    assert "url(" not in source
    assert "@import" not in source
    assert "http://" not in source
    assert "https://" not in source
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert len(source) < 200_000


def test_report_shows_what_a_phone_paper_and_the_dark_need(tmp_path: Path) -> None:
    source = render(full(), tmp_path)
    for needed in ("prefers-color-scheme: dark", "max-width: 540px", "@media print", "width=device-width"):
        assert needed in source
    wide, narrow = source.count('class="wide"'), source.count('class="narrow"')
    assert wide == narrow == source.count("<figure>") >= 12


PAYLOAD = "</style></svg></pre>\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"


def poisoned(value: Any, *, keys: bool) -> Any:
    if isinstance(value, dict):
        return {(f"{k}{PAYLOAD}" if keys else k): poisoned(v, keys=keys) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, keys=keys) for v in value]
    return f"{value}{PAYLOAD}" if isinstance(value, str) else value


def free_keys_poisoned(metrics: dict[str, Any]) -> dict[str, Any]:
    """A payload in every key that a user's data can name."""
    out = copy.deepcopy(metrics)
    for path in (
        ("run", "hardware"), ("run", "packages"), ("stages",), ("sample", "graph_relations"), ("train",), ("evaluate",),
        ("sample", "drawn_relations"), ("sample", "set_sizes"), ("generate", "backend"), ("generate", "finish_reasons"),
        ("check", "dropped"), ("score", "metrics"), ("score", "index"), ("weigh", "quantiles"),
        ("weigh", "mass_by_group"), ("samples",), ("evaluate", "written"),
    ):  # fmt: skip
        parent = out
        for key in path[:-1]:
            parent = next(v for k, v in parent.items() if k.startswith(key))
        last = next(k for k in parent if k.startswith(path[-1]))
        parent[last] = {f"{k}{PAYLOAD}": v for k, v in parent[last].items()}
    return out


@pytest.mark.parametrize("metrics", [full(), classification()], ids=["extraction", "classification"])
def test_report_escapes_everything(metrics: dict[str, Any], tmp_path: Path) -> None:
    clean = Page(render(metrics, tmp_path / "clean", "a = 1"))
    allowed = {tag for tag, _ in clean.tags} | {"title"}
    worst = [poisoned(metrics, keys=False)]
    if "sample" in metrics:
        worst.append(poisoned(free_keys_poisoned(metrics), keys=False))
    for i, bad in enumerate(worst):
        page = Page(render(bad, tmp_path / str(i), f"name = '{PAYLOAD}'"))
        assert page.open == []
        assert {tag for tag, _ in page.tags} <= allowed
        for _, attrs in page.tags:
            assert not any(name.startswith("on") for name in attrs)
        assert "<script>alert(1)</script>" in page.text  # shown as text, not lost
        assert "{{ 7*7 }}" in page.text


def test_report_figures_are_well_formed_and_hold_their_text(tmp_path: Path) -> None:
    metrics = full()
    metrics["sample"]["graph_relations"]["a relation with a name far too long to fit on any screen at all"] = 50
    for i, source in enumerate((render(metrics, tmp_path / "a"), render(classification(), tmp_path / "b"))):
        found = drawings(source)
        assert len(found) >= (24, 4)[i]
        for svg in found:
            _, _, width, height = map(float, svg.attrib["viewBox"].split())
            assert svg.attrib["aria-label"]
            for node in svg.iter():
                numbers = [v for k, v in node.attrib.items() if k in ("x", "y", "x1", "x2", "cx", "width", "height")]
                assert all(float(v) == float(v) for v in numbers)
            for node in svg.iter("text"):
                length = 0.5 * 12 * len(node.text or "")  # a little less than the room that is reckoned with
                x, y = float(node.attrib["x"]), float(node.attrib["y"])
                start = x - {"start": 0, "middle": length / 2, "end": length}[node.attrib["text-anchor"]]
                assert start >= -1, ElementTree.tostring(node)
                assert start + length <= width + 1, ElementTree.tostring(node)
                assert 0 < y <= height


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from paths(entry, (*at, key))
    elif isinstance(value, list):
        for i, entry in enumerate(value[:2]):
            yield from paths(entry, (*at, i))


def changed(metrics: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    out = copy.deepcopy(metrics)
    parent: Any = out
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return out


FEW = (("evaluate", "written", "ce/free"), ("samples", "good", 0), ("comparisons", 0), ("train", "ce", "loss"))


@pytest.mark.usefixtures("compiled")
def test_report_any_key_may_be_absent(tmp_path: Path) -> None:
    metrics = full()
    keys = [p for p in paths(metrics) if isinstance(p[-1], str) and (len(p) <= 2 or p[:3] in FEW)]
    assert len(keys) > 50
    for path in keys:
        assert render(changed(metrics, path, ...), tmp_path).endswith("</html>\n")
    assert Page(render({}, tmp_path)).open == []


@pytest.mark.parametrize(
    ("key", "anchor"),
    [("sample", "coverage"), ("generate", "generation"), ("check", "checks"), ("score", "diversity"),
     ("weigh", "weights"), ("train", "training"), ("samples", "samples")],
)  # fmt: skip
def test_report_leaves_out_a_section_without_numbers(key: str, anchor: str, tmp_path: Path) -> None:
    metrics = full()
    assert f'<section id="{anchor}">' in render(metrics, tmp_path)
    del metrics[key]
    source = render(metrics, tmp_path)
    assert f'id="{anchor}"' not in source
    assert f'href="#{anchor}"' not in source


NUMBERS = [-1, 0, 1e308, 9e99, -9e99, 1e-300, float("nan"), float("inf"), 10**400]
SHAPES = [[], {}, [[]], [None], {"a": {}}, [1, 2, 3], [[1, 2, 3]] * 3, {"value": "x"}, {"1": 0}, {"1": -5, "x": 2}]
HISTOGRAMS = [{"edges": [3, 2, 1], "counts": [1, 1]}, {"edges": [-1, 0, 9], "counts": [1, 0]}]
junk = st.sampled_from([None, True, "", "x", *NUMBERS, *SHAPES, *HISTOGRAMS])
BASES = {"extraction": full(), "classification": classification()}
PATHS = [(name, path) for name, metrics in BASES.items() for path in paths(metrics)]


@pytest.mark.usefixtures("compiled")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(PATHS), junk), min_size=1, max_size=4))
def test_report_odd_values_never_raise(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str, tuple[Any, ...]], Any]]
) -> None:
    metrics = copy.deepcopy(BASES[changes[0][0][0]])
    for (_, path), value in changes:
        try:
            metrics = changed(metrics, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took this place away
    source = render(metrics, tmp_path_factory.getbasetemp() / "odd")
    assert Page(source).open == []
    for svg in drawings(source):
        assert "nan" not in ElementTree.tostring(svg, encoding="unicode").replace("nance", "")


def test_report_classification(tmp_path: Path) -> None:
    page = Page(render(classification(), tmp_path))
    for shown in ("81.0", "Which model labels best?", "What is taken for what?", "360", "negative", "90% bootstrap"):
        assert shown in page.text, shown
    assert "micro" not in page.text.lower()


def test_report_same_metrics_same_bytes_and_no_leftovers(tmp_path: Path) -> None:
    first = render(full(), tmp_path)
    assert render(full(), tmp_path) == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "report.html"]


def test_report_says_what_is_wrong_with_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.json: expected a run folder"):
        render_report(tmp_path)
    (tmp_path / "metrics.json").write_text('{"run": ')
    with pytest.raises(InputError, match="expected a JSON object"):
        render_report(tmp_path)
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(InputError, match="saw 'list'"):
        render_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
