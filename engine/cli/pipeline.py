"""The verbs ``run`` and ``report``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from obverse.engine.cli.options import quiet

__all__ = ["report", "run"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The run's folder. [default: runs/NAME]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as sample.samples=500.")
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option("--check-only", is_flag=True, help="Check the recipe, print the stages and what is done, and stop.")
@quiet()
def run(
    recipe: Path, out: Path | None, overrides: tuple[str, ...], until: str | None, check_only: bool, quiet: bool
) -> None:
    """Carry out RECIPE (a TOML file) and write everything under one folder.

    A run that was stopped, however it was stopped, goes on where it was when the same command is given again. A
    finished run is left alone. The whole recipe is checked before any work.
    """
    from obverse.engine.recipe import load_recipe
    from obverse.engine.records.progress import Progress
    from obverse.engine.run.driver import finished_line, planned, run_recipe

    begun = time.perf_counter()
    checked, text = load_recipe(recipe, overrides)
    folder = out or Path("runs") / checked.name
    if check_only:
        click.echo(planned(checked, folder))
        return
    run_recipe(checked, folder, text=text, progress=Progress(quiet=quiet), until=until)
    if until is None:
        click.echo(finished_line(folder, time.perf_counter() - begun))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Write FOLDER/report.html again from FOLDER/metrics.json and the run's tables."""
    from obverse.engine.report.render import render_report

    click.echo(render_report(folder))
