from __future__ import annotations

import math
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from obverse.engine.report.charts import Bar, Dot, Line, bars, dots, dumbbells, histogram, lines
from obverse.engine.report.data_sections import _rates
from obverse.engine.report.gallery import groups, highlight
from obverse.engine.report.svg import Scale, clip_text, compact, element, log_ticks, ticks
from obverse.engine.report.values import Score, count, decimal, duration, gini, number, percent, score

PLACES = ("x", "y", "x1", "x2", "cx", "cy", "width", "height")


def nodes(svg: Markup, tag: str) -> list[dict[str, Any]]:
    found = []
    for node in ElementTree.fromstring(svg).iter(tag):
        numbers = {k: float(v) for k, v in node.attrib.items() if k in PLACES}
        found.append({**numbers, "class": node.attrib.get("class", ""), "text": node.text or ""})
    return found


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(12345.4), "12,345"),
        (count(2.5e7), "25.0 million"),
        (decimal(0.04567), "0.0457"),
        (decimal(12.34), "12.3"),
        (decimal(4567.8), "4,568"),
        (decimal(0), "0"),
        (decimal(0.00001234), "1.23e-05"),
        (percent(0.123), "12%"),
        (percent(0.0004), "<1%"),
        (percent(0.9996), ">99%"),
        (percent(1.0), "100%"),
        (percent(0.0), "0%"),
        (duration(0.31), "310 ms"),
        (duration(4.21), "4.2 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(492.4), "8 min 12 s"),
        (duration(11520), "3 h 12 min"),
        (compact(1500), "1.5k"),
        (compact(0.02), "0.02"),
        (compact(1e-5), "1e-5"),
        (compact(2e7), "20M"),
    ],
)
def test_report_numbers_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_report_number_and_score_take_only_numbers() -> None:
    assert [number(v) for v in (1, 2.5, True, "3", None, math.nan, math.inf, 1e308, 10**400)] == [1, 2.5] + [None] * 7
    assert score({"value": 0.5, "low": None, "high": 0.6}) == Score(0.5, None, 0.6)
    assert score(0.25) == Score(0.25)
    assert score({"low": 0.1}) is None


def test_report_gini() -> None:
    assert gini([5, 5, 5]) == pytest.approx(0)
    assert gini([0, 0, 0, 8]) == pytest.approx(0.75)
    assert gini([1, 3]) == pytest.approx(0.25)
    assert gini([0, 0]) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 8))
def test_report_ticks_are_round_inside_and_few(low: float, span: float, wanted: int) -> None:
    found = ticks(low, low + span, wanted)
    assert 1 <= len(found) <= 2 * wanted + 1
    assert all(low - span * 1e-6 <= v <= low + span * (1 + 1e-6) for v in found)
    steps = [b - a for a, b in pairwise(found)]
    assert all(s == pytest.approx(steps[0], rel=1e-3) for s in steps)
    if steps:
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.0001))
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 0.01


@given(st.floats(1e-6, 1e6), st.floats(1.5, 1e8))
def test_report_log_ticks_stay_inside(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)
    assert 1 <= len(found) <= 9
    assert all(low * 0.99 <= v <= low * ratio * 1.01 for v in found)


def test_report_scale_maps_ends_and_clamps() -> None:
    linear, log = Scale(0, 10, 100, 200), Scale(0.01, 100, 0, 80, log=True)
    assert [linear(v) for v in (0, 5, 10, 99, -1)] == [100, 150, 200, 200, 100]
    assert [round(log(v), 9) for v in (0.01, 0.1, 1, 100, 0)] == [0, 20, 40, 80, 0]
    flat = Scale(3, 3, 0, 10)
    assert 0 <= flat(3) <= 10


def test_report_element_escapes_text_and_attributes() -> None:
    made = element("text", "<b>&", x=1.26, class_='"><script>')
    assert made == '<text x="1.3" class="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;</text>'
    assert element("g", made, id=None) == f"<g>{made}</g>"


def test_report_clip_text() -> None:
    assert clip_text("short", 100) == "short"
    assert clip_text("a relation with a long name", 60).endswith("…")
    assert len(clip_text("東京都東京都東京都", 60)) < len(clip_text("tokyotokyotokyo", 60))


def test_report_dots_place_values_and_intervals_on_one_scale() -> None:
    rows = [
        Dot("a", Score(0.50, 0.45, 0.55), "c1"),
        Dot("b", Score(0.60), "c2", True),
        Dot("c", Score(0.70, 0.6, 0.8), "c1"),
    ]
    svg = dots(rows, 520, x_title="micro-F1")
    a, b, c = (node["cx"] for node in nodes(svg, "circle"))
    assert b - a == pytest.approx(c - b, abs=0.2)
    low, high = [node for node in nodes(svg, "line") if "w" in node["class"].split()]
    assert (low["x1"] + low["x2"]) / 2 == pytest.approx(a, abs=0.2)
    assert high["x1"] == pytest.approx(b, abs=0.2)
    assert [node["class"] for node in nodes(svg, "circle")] == ["f c1", "h c2", "f c1"]
    assert {"50.0", "60.0", "70.0", "a", "b", "c", "micro-F1"} <= {node["text"] for node in nodes(svg, "text")}


def test_report_histogram_heights_are_counts_and_small_bins_stay_visible() -> None:
    svg = histogram([0, 1, 2, 3, 4], [10, 20, 0, 0.001], 520, x_title="x", y_title="n", mark=(2.0, "here"))
    first, second, tiny = nodes(svg, "rect")
    assert second["height"] == pytest.approx(2 * first["height"], abs=0.2)
    assert tiny["height"] == 1.5
    (mark,) = [node for node in nodes(svg, "line") if node["class"] == "k"]
    assert mark["x1"] == pytest.approx(second["x"] + second["width"], abs=1.1)
    log = nodes(histogram([0.1, 1, 10], [1, 1], 520, x_title="x", y_title="n", log=True), "rect")
    assert log[0]["width"] == pytest.approx(log[1]["width"], abs=0.2)


def test_report_bars_and_dumbbells_and_lines() -> None:
    rows = [Bar("checked", 0, 100, "100", "c6"), Bar("short", 80, 100, "−20", "c2"), Bar("kept", 0, 80, "80", "c1")]
    whole, dropped, kept = nodes(bars(rows, 520, description="d"), "rect")
    assert dropped["width"] == pytest.approx(0.2 * whole["width"], abs=0.2)
    assert kept["x"] + kept["width"] == pytest.approx(dropped["x"], abs=0.2)
    pairs = dumbbells([("r", 10, 1), ("q", 0.1, 0)], 520, x_title="x", before="b", after="a")
    circles = [node for node in nodes(pairs, "circle") if node["cy"] > 20]
    assert circles[0]["cx"] > circles[1]["cx"] > circles[2]["cx"] > circles[3]["cx"]
    assert circles[3]["class"] == "h c1"  # never drawn: hollow at the edge
    curves = [Line(n, [(0, 1), (9, 1 + i / 1000)], "c1") for i, n in enumerate("abcd")]
    labels = [n["y"] for n in nodes(lines(curves, 520, x_title="x", y_title="y"), "text") if n["text"] in "abcd"]
    assert all(b - a >= 14.9 for a, b in pairwise(sorted(labels)))  # names never overlap


def test_report_rates_come_from_running_totals() -> None:
    rows = [(float(s), 10.0 * s, 100.0 * s) for s in range(11)]
    assert [rate for _, rate in _rates(rows)] == pytest.approx([100.0] * 10)
    resumed = [*rows[:6], *[(float(s), 10.0 * s, 100.0 * s) for s in range(6)]]
    assert all(rate == pytest.approx(100.0) for _, rate in _rates(resumed))
    many = [(s / 10, float(s), 50.0 * s) for s in range(5000)]
    found = _rates(many)
    assert 40 <= len(found) <= 48
    assert all(rate == pytest.approx(500.0) for _, rate in found)
    assert _rates(rows[:1]) == []


def test_report_highlight_longest_first_and_whole_words() -> None:
    marked, found = highlight(
        "São Tomé and Príncipe: são tomé, not Tomélandia.", ["São Tomé", "São Tomé and Príncipe", "Tomé"]
    )
    assert marked == (
        '<mark class="e2">São Tomé and Príncipe</mark>: <mark class="e1">são tomé</mark>, not Tomélandia.'
    )
    assert found == {"São Tomé", "São Tomé and Príncipe"}


def test_report_highlight_needs_no_spaces_where_a_script_has_none() -> None:
    marked, found = highlight("東京は日本の首都です。", ["東京", "日本"])
    assert marked == '<mark class="e1">東京</mark>は<mark class="e2">日本</mark>の首都です。'
    assert found == {"東京", "日本"}


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=6).map(str.strip).filter(bool), max_size=4))
def test_report_highlight_keeps_the_text(body: str, names: list[str]) -> None:
    marked, found = highlight(body, names)
    assert marked.striptags().split() == Markup.escape(body).striptags().split()
    assert found <= set(names)


def test_report_gallery_shows_missing_names_and_both_ways_to_write_triplets() -> None:
    struct = {part: {"uri": None, "surfaceform": name} for part, name in
              (("subject", "Oslo"), ("predicate", "country"), ("object", "Norway"))}  # fmt: skip
    metrics = {
        "samples": {
            "own kind": [{"id": "x1", "text": "Oslo", "triplets": [struct]}],
            "good": [{"id": 1234567, "text": "Oslo, Norway", "triplets": [["Oslo", "country", "Norway"], ["odd"]]}],
            "bad": [],
        }
    }
    good, own = groups(metrics)
    assert (good.title, own.title) == ("Good", "own kind")
    assert good.samples[0].id == "1234567"
    assert len(good.samples[0].facts) == 1
    assert good.samples[0].facts[0][2] == '<span class="e2">Norway</span>'
    assert own.samples[0].facts[0][2] == '<span class="missing" title="not in the text">Norway</span>'
