"""The root command. Each verb's module is imported when the verb is used, so ``obverse --help`` is quick."""

from __future__ import annotations

import importlib
import signal
import sys

import click

from obverse import __version__
from obverse.engine.errors import ObverseError

__all__ = ["main"]

_VERBS = {
    "run": ("pipeline", "Carry out a recipe, from targets to report; go on where a run stopped."),
    "sample": ("data", "Draw target triplet sets from a knowledge graph."),
    "generate": ("generate", "Write a text for every target with a language model."),
    "check": ("data", "Check texts: mentions, length, echo, duplicates, leaks."),
    "embed": ("data", "Turn texts into vectors."),
    "score": ("data", "Score diversity by nearest neighbours."),
    "metrics": ("metrics", "Figures of a whole set: Vendi, PRDC, MAUVE, self-BLEU, distinct-n, coverage."),
    "dedup": ("select", "Find near-duplicate vectors or texts over all pairs; keep one of each."),
    "select": ("select", "Choose the n rows that cover or spread over the set, or the best by a score."),
    "weigh": ("model", "Weigh samples: quality checker over diversity checker."),
    "train": ("model", "Train an extractor or a classifier with weighted samples."),
    "decode": ("model", "Predict with a trained model, under constraints if asked."),
    "evaluate": ("model", "Precision, recall, F1 or accuracy with bootstrap intervals."),
    "report": ("pipeline", "Write report.html and metrics.json of a run again."),
    "export": ("export", "Write a run as a data set with its card, to open with `datasets` or to upload."),
    "catalog": ("catalog", "Compile names into a token trie for constrained decoding and linking."),
    "bench": ("tools", "Measure this machine's rate at each stage."),
    "doctor": ("tools", "Say what this machine can run, what is missing and how to get it."),
}


class _Verbs(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"obverse.engine.cli.{_VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], list(_VERBS), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" The verbs are {', '.join(_VERBS)}."
            raise click.UsageError(f"{error.message}{hint}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, about) for name, (_, about) in _VERBS.items()])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="obverse")
def obverse() -> None:
    """Make training data with language models, weigh it, and learn from it.

    \b
    sample -> generate -> check -> embed -> score -> weigh -> train -> decode -> evaluate -> report

    `obverse run RECIPE` does all of it; every stage also runs alone on files. `obverse VERB --help` tells more.
    """


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it before it takes a machine away: work ends as it does by Ctrl-C."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def main() -> None:
    """Run the command line; errors that Obverse raises on purpose are printed plainly, without a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # A verb that ends by `Exit` has its code given back here, not raised.
        stopped = obverse(prog_name="obverse", standalone_mode=False)
    except click.exceptions.Abort as abort:
        click.echo("stopped; run the same command again to go on", err=True)
        sys.exit(143 if isinstance(abort.__cause__, _Terminated) else 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ObverseError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if isinstance(stopped, int) and stopped:
        sys.exit(stopped)
