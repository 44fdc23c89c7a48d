"""`render_report`: metrics.json in, one self-contained report.html out."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from obverse.engine.errors import InputError
from obverse.engine.report.data_sections import DATA_SECTIONS
from obverse.engine.report.gallery import groups
from obverse.engine.report.model_sections import scores_section, training_section
from obverse.engine.report.summary import cards, made_section, subtitle
from obverse.engine.report.values import get, text

__all__ = ["render_report"]


def render_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from ``run_dir/metrics.json`` (and ``recipe.toml``, where there is one).

    The page needs no network and no script: styles and figures are in it. A key that metrics.json lacks leaves its
    section out. The same metrics give the same bytes. Gives the path of the page; raises `InputError` when
    metrics.json is absent or is not a JSON object.
    """
    run_dir = Path(run_dir)
    metrics = _read_metrics(run_dir / "metrics.json")
    recipe_path = run_dir / "recipe.toml"
    recipe = recipe_path.read_text(encoding="utf-8", errors="replace") if recipe_path.is_file() else None
    page = _page(metrics, recipe)
    target = run_dir / "report.html"
    unfinished = run_dir / ".report.html.tmp"
    unfinished.write_text(page, encoding="utf-8", errors="replace")
    unfinished.replace(target)
    return target


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("a run folder with metrics.json in it", file=path, seen="no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("a JSON object", file=path, seen=str(error)) from error
    if not isinstance(metrics, dict):
        raise InputError("a JSON object", file=path, seen=type(metrics).__name__)
    return metrics


def _page(metrics: dict[str, Any], recipe: str | None) -> str:
    # What came out stands first; then the way there, in order.
    builders = (scores_section, *DATA_SECTIONS, training_section)
    sections = [section for build in builders if (section := build(metrics))]
    template = _environment().get_template("page.html.j2")
    return template.render(
        name=text(get(metrics, "run", "name")) or "run",
        subtitle=subtitle(metrics),
        cards=cards(metrics),
        sections=sections,
        samples=groups(metrics),
        made=made_section(metrics, recipe),
        recipe=recipe,
    )


def _environment() -> jinja2.Environment:
    folder = files("obverse.engine.report")

    def load(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    return jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(load),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
