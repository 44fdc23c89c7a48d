"""The verbs ``bench`` and ``doctor``."""

from __future__ import annotations

import click

from obverse.engine.cli.options import seed

__all__ = ["bench", "doctor"]


@click.command()
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@click.option("--rows", type=click.IntRange(64), default=1000, show_default=True, help="Rows a stage is measured on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@seed()
def bench(stages: tuple[str, ...], rows: int, as_json: bool, seed: int) -> None:
    """Measure this machine's rate at each STAGE (default: all that run here) on the geography graph.

    These are rates of this engine on this machine. `make bench` in a checkout measures against named peers.
    """
    import json

    from obverse.engine.run.rates import STAGES, measure_rates

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise click.UsageError(f"unknown stage '{unknown[0]}'; the stages measured are {', '.join(STAGES)}")
    for row in measure_rates(stages or STAGES, rows=rows, seed=seed):
        if as_json:
            click.echo(json.dumps(row))
        else:
            click.echo(f"{row['op']:<10} {row['value']:>12,.0f} {row['unit']:<10} {row['shape']}")


@click.command()
def doctor() -> None:
    """Say what this machine can run, what is missing and the command that mends it.

    Exits with 1 when something that `make demo` needs is missing.
    """
    from obverse.engine.run.doctor import examine

    findings = examine()
    for finding in findings:
        mark = "ok" if finding.ok else ("MISSING" if finding.needed else "absent")
        click.echo(f"{mark:<8} {finding.name:<22} {finding.detail}")
        if not finding.ok and finding.remedy:
            click.echo(f"{'':<8} {'':<22} -> {finding.remedy}")
    if any(finding.needed and not finding.ok for finding in findings):
        raise click.exceptions.Exit(1)
