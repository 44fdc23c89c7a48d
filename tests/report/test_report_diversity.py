"""The diversity section: figures of what was scored, and how well it is known."""

from __future__ import annotations

from typing import Any

import pytest

from obverse.engine.report.diversity import diversity_section

HISTOGRAM = {"edges": [-3.0, -1.5, 0.5, 1.0], "counts": [2, 5, 1]}
INDEX: dict[str, Any] = {
    "engine": "exact",
    "reason": "5,000 rows are within 200,000",
    "certificate": {"pairs": 12_497_500, "evaluated": 61_000},
    "recall": None,
    "duplicates": {"rows": 5000, "kept": 4900, "groups": 80, "largest_group": 7, "threshold": 0.95, "pairs": 130},
    "seconds": {"join": 1.5, "clusters": 0.25},
}


def blocks(score: dict[str, Any]) -> dict[str, Any]:
    section = diversity_section({"score": score})
    assert section is not None
    return {getattr(block, "question", None) or block.title: block for block in section.blocks}  # type: ignore[union-attr]


def test_report_diversity_shows_every_figure_and_what_was_proved() -> None:
    found = blocks(
        {
            "mean_knn_distance": {"edges": [0.0, 0.1, 0.3], "counts": [1, 3]},
            "local_density": HISTOGRAM,
            "novelty": {"edges": [0.0, 0.5, 1.0], "counts": [0, 4]},
            "metrics": {"vendi": 12.5},
            "index": INDEX,
        }
    )
    assert list(found) == [
        "How far is each text from its neighbours?",
        "Which texts stand alone?",
        "How far is each text from real ones?",
        "Are there near-duplicates?",
        "How diverse is the whole set?",
        "How were the neighbours found?",
    ]
    assert found["Which texts stand alone?"].answer.startswith("25%")
    assert "0.75" in found["How far is each text from real ones?"].answer
    assert dict(found["Are there near-duplicates?"].rows) == {
        "rows that repeat another": "100 (2%)",
        "from a cosine of": "0.950",
        "groups": "80",
        "largest group": "7",
    }
    told = dict(found["How were the neighbours found?"].rows)
    assert told["proved exact"].startswith("12.5 million pairs: 61,000 computed in float64")
    assert told["time"] == "join 1.5 s, clusters 250 ms"
    assert "recall, measured" not in told


def test_report_diversity_shows_what_was_measured_of_an_approximate_engine() -> None:
    estimate = {"value": 0.9931, "low": 0.99, "high": 0.9952, "sample": 2000}
    index = {"engine": "descent", "recall": estimate, "score_error": {**estimate, "value": 0.004}, "certificate": None}
    told = dict(blocks({"metrics": {"n": 5.0}, "index": index})["How were the neighbours found?"].rows)
    assert told["recall, measured"] == "0.9931 [0.9900, 0.9952] on 2,000 rows"
    assert told["p99 error of the distance, measured"] == "0.0040 [0.9900, 0.9952] on 2,000 rows"
    assert "proved exact" not in told


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {"value": "?"}, {"rows": "?"}, {"edges": [1], "counts": [1]}])
def test_report_diversity_takes_anything(wrong: Any) -> None:
    keys = ("engine", "certificate", "recall", "score_error", "duplicates", "seconds", "parameters")
    score = {"metrics": {"n": 5.0}, "index": dict.fromkeys(keys, wrong), "local_density": wrong, "novelty": wrong}
    assert diversity_section({"score": score}) is not None
    assert diversity_section({"score": {**score, "metrics": wrong}}) is None
