"""Options that watch a run of generation: metrics for Prometheus, and what the rows cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from obverse.engine.generate.throughput import Throughput

__all__ = ["measured", "throughput_options"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
NAMES = ("metrics_port", "metrics_host", "metrics_file", "gpu_price", "gpus")


def throughput_options() -> Decorator:
    """``--metrics-port``, ``--metrics-host``, ``--metrics-file``, ``--gpu-price``, ``--gpus``; none changes results."""
    options = [
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            help="Serve Prometheus metrics at http://HOST:PORT/metrics while texts are written (0: any free port).",
        ),
        click.option(
            "--metrics-host", default="127.0.0.1", show_default=True, help="Address that the port is bound to."
        ),
        click.option(
            "--metrics-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write the metrics to this .prom file every 15 s, for node_exporter's textfile collector.",
        ),
        click.option(
            "--gpu-price",
            type=click.FloatRange(0, min_open=True),
            help="Dollars an hour of one GPU: shows the cost of a million rows.",
        ),
        click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="GPUs that are paid for."),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@contextmanager
def measured(options: dict[str, Any], *, quiet: bool = False) -> Iterator[Throughput]:
    """A recorder as the options ask for it, its metrics served while the block runs; its names leave ``options``.

    Raises `RunError` where the port or the file can't be had.
    """
    from obverse.engine.generate.prometheus import MetricsServer, TextfileWriter, exposition
    from obverse.engine.generate.throughput import Price, Throughput

    port, host, file, dollars, gpus = (options.pop(name) for name in NAMES)
    recorder = Throughput(Price(dollars, gpus) if dollars is not None else None)
    with ExitStack() as stack:
        if port is not None:
            server = stack.enter_context(MetricsServer(lambda: exposition(recorder), port, host))
            if not quiet:
                click.echo(f"metrics: http://{host}:{server.port}/metrics", err=True)
        if file is not None:
            stack.enter_context(TextfileWriter(file, recorder))
        yield recorder
