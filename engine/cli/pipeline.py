"""The verbs ``run`` and ``report``."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obverse.engine.cli.options import quiet
from obverse.engine.cli.throughput import NAMES, measured, throughput_options

if TYPE_CHECKING:
    from obverse.engine.run.context import Site

__all__ = ["report", "run"]


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The run's folder. [default: runs/NAME]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as sample.samples=500.")
@click.option(
    "--samples", type=click.IntRange(1), help="Targets in all; as --set sample.samples=N. Raise it to extend."
)
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option("--check-only", is_flag=True, help="Check the recipe, print the stages and what is done, and stop.")
@click.option("--on", "place", type=click.Choice(["local", "ray"]), default="local", help="Where. [default: local]")
@click.option("--address", metavar="HOST:PORT", help="A running Ray cluster, or 'auto'. [default: start one here]")
@click.option("--workers", type=click.IntRange(1), help="Models at once on Ray. [default: one a machine or GPU group]")
@click.option("--worker-cpus", type=click.IntRange(1), help="CPUs, and threads, of each worker on Ray. [default: 1]")
@click.option("--shard", metavar="I/N", help="Write the texts of shard I of N (by a hash of the id), and stop.")
@click.option("--merge", is_flag=True, help="Take the texts from the N shards below this folder, and go on.")
@throughput_options()
@quiet()
def run(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    samples: int | None,
    until: str | None,
    check_only: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Carry out RECIPE (a TOML file) and write everything under one folder.

    A run that was stopped, however it was stopped, goes on where it was when the same command is given again. A
    finished run is left alone. The whole recipe is checked before any work.

    \b
    Many machines, the same results (docs/distributed.md):
      obverse run RECIPE -o RUN --on ray --address auto    on a Ray cluster
      obverse run RECIPE -o RUN --shard 3/8                without one: once for each of 1/8 to 8/8,
      obverse run RECIPE -o RUN --merge                    then this
    """
    from obverse.engine.recipe import load_recipe
    from obverse.engine.records.progress import Progress
    from obverse.engine.run.driver import finished_line, planned, run_recipe

    begun = time.perf_counter()
    if samples is not None:
        overrides = (*overrides, f"sample.samples={samples}")
    checked, text = load_recipe(recipe, overrides)
    where = {name: value for name, value in options.items() if name not in NAMES}
    folder, until, site = _where(out or Path("runs") / checked.name, until, **where)
    if check_only:
        # A cluster need not be there for this, and changes no key.
        click.echo(planned(checked, folder, site.enter_result if isinstance(site, nullcontext) else None))
        return
    with site as here, measured(options, quiet=quiet) as recorder:
        progress = Progress(quiet=quiet)
        run_recipe(checked, folder, text=text, progress=progress, until=until, site=here, recorder=recorder)
    if until is None:
        click.echo(finished_line(folder, time.perf_counter() - begun))


def _where(
    folder: Path,
    until: str | None,
    *,
    place: str,
    address: str | None,
    workers: int | None,
    worker_cpus: int | None,
    shard: str | None,
    merge: bool,
) -> tuple[Path, str | None, AbstractContextManager[Site | None]]:
    """The run's folder, its last stage and its site, from the options that say where it runs."""
    if sum((place == "ray", shard is not None, merge)) > 1:
        raise click.UsageError("--on ray, --shard and --merge are three ways; take one")
    if place == "ray":
        from obverse.engine.run.ray import RaySite

        return folder, until, RaySite(address, workers=workers, worker_cpus=worker_cpus or 1)
    for name, value in (("--address", address), ("--workers", workers), ("--worker-cpus", worker_cpus)):
        if value is not None:
            raise click.UsageError(f"{name} goes with --on ray")
    if not merge and shard is None:
        return folder, until, nullcontext()
    from obverse.engine.run.partition import MergeSite, Part, PartSite

    if shard is None:
        return folder, until, nullcontext(MergeSite())
    if until not in (None, "generate"):
        raise click.UsageError("--shard ends with the stage generate; take --until out")
    part = Part.parse(shard)
    return part.folder(folder), "generate", nullcontext(PartSite(part))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Write FOLDER/report.html again from FOLDER/metrics.json and the run's tables."""
    from obverse.engine.report.render import render_report

    click.echo(render_report(folder))
