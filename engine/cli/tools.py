"""The verbs ``bench`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from obverse.engine.cli.options import seed

__all__ = ["bench", "doctor"]


@click.command()
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@click.option("--rows", type=click.IntRange(64), default=1000, show_default=True, help="Rows a stage is measured on.")
@click.option("--model", default="demo", show_default=True, help="The model of `bench generate`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@seed()
def bench(stages: tuple[str, ...], rows: int, model: str, as_json: bool, seed: int) -> None:
    """Measure this machine's rate at each STAGE (default: all that run here) on the geography graph.

    `bench generate` alone sets generation, all of it, beside bare vLLM on the same requests through the same engine.
    `make bench` in a checkout measures the other stages against named peers.
    """
    import json

    from obverse.engine.run.rates import STAGES, measure_rates

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise click.UsageError(f"unknown stage '{unknown[0]}'; the stages measured are {', '.join(STAGES)}")
    if model != "demo" and stages != ("generate",):
        raise click.UsageError("--model is for `obverse bench generate` alone")
    compares = stages == ("generate",) and _has_vllm()
    if stages == ("generate",) and not compares:
        click.echo("vLLM is not installed: there is nothing to compare with", err=True)
    measured = _beside_bare(model, rows, seed) if compares else measure_rates(stages or STAGES, rows=rows, seed=seed)
    for row in measured:
        if as_json:
            click.echo(json.dumps(row))
            continue
        ratio = f"  {row['peer_ratio']:.2f}x the best peer" if "peer_ratio" in row else ""
        name = row["provider"] if compares else row["op"]
        click.echo(f"{name:<28} {row['value']:>12,.0f} {row['unit']:<10} {row['shape']}{ratio}")


def _has_vllm() -> bool:
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def _beside_bare(model: str, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of ours and of bare vLLM, as records."""
    from statistics import median

    from obverse.engine.generate.compare import OURS, compare_with_bare
    from obverse.engine.generate.settings import GenerateSettings
    from obverse.engine.graph.load import load_graph
    from obverse.engine.graph.sampling import SampleSettings, TargetSampler

    targets = TargetSampler(load_graph("geography"), SampleSettings(), seed).draw(rows)
    found = compare_with_bare(GenerateSettings(backend="vllm", model=model), targets, seed=seed)
    shape = f"{rows:,} rows, {model}"
    for name, seconds in found.seconds.items():
        row: dict[str, Any] = {"bench": "rates", "op": "generate", "provider": name, "unit": "tokens/s", "shape": shape}
        row |= {
            "value": found.output_tokens / median(seconds),
            "cpu_seconds": round(median(found.cpu_seconds[name]), 3),
        }
        yield row | ({"peer_ratio": found.ratio()} if name == OURS else {})


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
