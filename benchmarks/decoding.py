"""Constrained decoding over up to six million names, beside what the field uses, in one process.

``python -m benchmarks.decoding [--quick] [--json] [--csv FILE] [--only PART,PART...]``

The parts: ``names`` (how the grown names compare with the real ones they grew from), ``steps`` (compile time, and the
cost of 64-row masks along random valid names, with the peers' allowed tokens compared first), ``growth`` (10,000 to
6,000,000 names), ``scale`` (peak memory, bytes a name, opening, a second process,
and the whole catalogue with tokenising), ``host`` (a Hugging Face step),
``grammar`` (whole triplets), ``models`` (share of a real model's decode step), ``vllm`` (the same in vLLM) and
``validity`` (sampled outputs parsed and looked up). Peers that are not installed are left out with a line.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.catalog_names import grown_names, real_names, seed_statistics
from benchmarks.catalog_vocabularies import Names, Vocabulary, entity_ids, load_vocabulary, say
from benchmarks.decoding_model import host_share_rows, vllm_share_rows
from benchmarks.decoding_peers import Walker, peers
from benchmarks.decoding_scale import catalogue_rows, scale_rows
from benchmarks.decoding_steps import (
    ROWS,
    CallersWalker,
    LogitsWalker,
    OursWalker,
    Paths,
    agree,
    cold_steps,
    compared,
    name_constraint,
    single_rows,
    step_rows,
    walk,
    walk_apart,
)
from benchmarks.decoding_triplets import grammar_rows, host_step_rows
from benchmarks.decoding_validity import validity_rows
from benchmarks.harness import OURS, Row, peak_extra_memory, run_main

_LOGITS = "obverse, logits in place"
_CALLERS = "obverse, the caller's masks"


def _vocabularies(names: Sequence[str]) -> list[Vocabulary]:
    """Those of the tokenizers named that can be had here; the demo model's where none can."""
    found = [vocabulary for name in names if (vocabulary := load_vocabulary(name)) is not None]
    if not found and (demo := load_vocabulary("demo")) is not None:
        found = [demo]
    return found


def _names(quick: bool) -> Iterator[Row]:
    """Tokens and trie nodes a name, and the root's children: of real names, and of as many grown ones."""
    (vocabulary,) = _vocabularies(["llama2"])
    real, source = real_names()
    count = min(100_000, len(real))
    names = entity_ids(vocabulary, len(real) + count if quick else 1_000_000)
    grown = Names(
        names.tokens[names.offsets[-count - 1] :], names.offsets[-count - 1 :] - names.offsets[-count - 1], ""
    )
    for provider, part in ((source, names.first(count)), ("names grown from them", grown)):
        for field, value in seed_statistics(part.tokens, part.offsets)._asdict().items():
            shape = f"{count:,} names, {vocabulary.label}"
            yield Row("decoding", "names", provider, shape, field.replace("_", " "), value, "")


def _steps(quick: bool) -> Iterator[Row]:
    if quick:
        (vocabulary,) = _vocabularies(["gpt2"])
        yield from _beside_peers(vocabulary, 10_000, 48)
        yield from _beside_peers(vocabulary, 100_000, 48)
        return
    for vocabulary in _vocabularies(["gpt2", "llama2", "qwen"]):
        for count in (10_000, 100_000, 1_000_000):
            if count == 1_000_000 or vocabulary.name == "gpt2":
                yield from _beside_peers(vocabulary, count, 400)


def _beside_peers(vocabulary: Vocabulary, count: int, steps: int) -> Iterator[Row]:
    """Compile all engines over the same names, compare what they allow, and walk."""
    from obverse._core import Trie

    names = entity_ids(vocabulary, count)
    shape = f"{count:,} {names.source}, {vocabulary.label}"
    engines = list(peers(vocabulary, names, grown_names(count)[0], ROWS))
    cases = {OURS: lambda: Trie.build(names.tokens, names.offsets)} | {peer.label: peer.compile for peer in engines}
    made, seconds, megabytes = _compiled(cases)
    yield from compared("compile, ids given", shape, "time", seconds, unit="s")
    yield from compared("compile, ids given", shape, "peak memory added", megabytes, unit="MB", each=False)
    constraint, opening = name_constraint(made[OURS], vocabulary)
    ours = OursWalker(constraint, opening, ROWS)
    callers, in_place = CallersWalker(constraint, opening, ROWS), LogitsWalker(constraint, opening, ROWS)
    walkers: dict[str, Walker] = {OURS: ours} | {peer.label: peer.walker(made[peer.label]) for peer in engines}
    wider = [peer.label for peer in engines if peer.wider]
    agree({OURS: ours, _CALLERS: callers, _LOGITS: in_place}, Paths.of_names(names, vocabulary.eos, 1), 10)
    for label, share in agree(walkers, Paths.of_names(names, vocabulary.eos, 1), max(steps // 8, 10), wider).items():
        yield Row("decoding", "64-row mask", label, shape, "rows that lack a token of ours", 100 * share, "%")
    samples = walk(walkers, Paths.of_names(names, vocabulary.eos, 2), steps)
    yield from step_rows("64-row mask", shape, samples)
    for label, walker in ((_CALLERS, callers), (_LOGITS, in_place)):
        fill = walk({label: walker}, Paths.of_names(names, vocabulary.eos, 3), steps)[label].fill
        yield Row("decoding", "64-row mask", label, shape, "mean a row", float(fill.mean()) / ROWS * 1e6, "us")
    cold = cold_steps(ours, Paths.of_names(names, vocabulary.eos, 3), max(steps // 4, 10))
    for metric, value in (("mean a row", cold.mean()), ("p99 a row", np.percentile(cold, 99))):
        yield Row("decoding", "64-row mask, cold caches", OURS, shape, metric, float(value) / ROWS * 1e6, "us")
    singles = single_rows(callers, Paths.of_names(names, vocabulary.eos, 4), steps)
    for share in (50, 99):
        value = float(np.percentile(singles, share)) * 1e6
        yield Row("decoding", "1-row mask", OURS, shape, f"p{share}", value, "us")
    del walkers, made, engines, cases
    gc.collect()


def _compiled(cases: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """What each case makes, its least seconds, and the megabytes that its first making took at most.

    Up to three turns, but one for what takes over a second.
    """
    made: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    megabytes: dict[str, float] = {}

    def make(label: str) -> None:
        begun = time.perf_counter()
        made[label] = cases[label]()
        seconds[label] = min(seconds.get(label, np.inf), time.perf_counter() - begun)

    for _ in range(3):
        for label in cases:
            if seconds.get(label, 0.0) > 1.0:
                continue
            made.pop(label, None)
            gc.collect()
            gc.freeze()  # the collector runs, as it does for a peer's users, but need not walk this benchmark's lists
            peak = peak_extra_memory(functools.partial(make, label))
            gc.unfreeze()
            if peak is not None:
                megabytes.setdefault(label, peak / 1e6)
    return made, seconds, megabytes


def _growth(quick: bool) -> Iterator[Row]:
    """A row's mask from 10,000 names to 6,000,000, each catalogue with paths of its own: in turn, then each alone."""
    from obverse._core import Trie

    (vocabulary,) = _vocabularies(["llama2"])
    counts = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000, 6_000_000)
    walkers, paths, made = {}, {}, {}
    for count in counts:
        names = entity_ids(vocabulary, count)
        constraint, opening = name_constraint(Trie.build(names.tokens, names.offsets), vocabulary)
        label = f"{count:,} names"
        made[label] = names
        walkers[label], paths[label] = OursWalker(constraint, opening, ROWS), Paths.of_names(names, vocabulary.eos, 5)
    steps = 200 if quick else 2000
    for op, times in (
        ("growth of a 64-row mask", walk_apart(walkers, paths, steps)),
        ("growth of a 64-row mask, each catalogue alone", _alone(walkers, made, vocabulary.eos, steps)),
    ):
        means = {label: float(values.mean()) / ROWS * 1e6 for label, values in times.items()}
        for label, mean in means.items():
            yield Row("decoding", op, OURS, f"{label}, {vocabulary.label}", "mean a row", mean, "us")
        first, *_, last = means
        shape = f"{first} to {last}, {vocabulary.label}"
        yield Row("decoding", op, OURS, shape, "ratio", means[last] / means[first], "x")


def _alone(walkers: dict[str, Any], names: dict[str, Names], eos: int, steps: int) -> dict[str, np.ndarray]:
    """Seconds of each step, one catalogue after another: nothing else has been in the caches."""
    times = {}
    for label, walker in walkers.items():
        times[label] = walk({label: walker}, Paths.of_names(names[label], eos, 6), steps)[label].fill
    return times


def _scale(quick: bool) -> Iterator[Row]:
    (vocabulary,) = _vocabularies(["llama2"])
    yield from scale_rows(vocabulary, [100_000] if quick else [100_000, 1_000_000, 6_000_000])
    yield from catalogue_rows(vocabulary, [100_000] if quick else [1_000_000, 6_000_000])


def _host(quick: bool) -> Iterator[Row]:
    (vocabulary,) = _vocabularies(["gpt2"])
    yield from host_step_rows(vocabulary, 10_000 if quick else 1_000_000, 24 if quick else 100)


def _grammar(quick: bool) -> Iterator[Row]:
    (vocabulary,) = _vocabularies(["gpt2"])
    if quick:
        yield from grammar_rows(vocabulary, 100_000, 10_000, 30)
    else:
        yield from grammar_rows(vocabulary, 1_000_000, 100_000, 300)


def _models(quick: bool) -> Iterator[Row]:
    if quick:
        say("models: a real model's steps take minutes, left out of --quick")
        return
    for shape in ("T5-base", "0.5B Llama"):
        yield from host_share_rows(shape, 1_000_000, 48, 2)


def _vllm(quick: bool) -> Iterator[Row]:
    if quick:
        say("vllm: starting the engine twice takes most of a minute, left out of --quick")
        return
    yield from vllm_share_rows(1_000_000, 3)


def _validity(quick: bool) -> Iterator[Row]:
    (vocabulary,) = _vocabularies(["llama2"])
    yield from validity_rows(vocabulary, 10_000 if quick else 1_000_000, 2_000 if quick else 1_000_000)


PARTS = {
    "names": _names,
    "steps": _steps,
    "growth": _growth,
    "scale": _scale,
    "host": _host,
    "grammar": _grammar,
    "models": _models,
    "vllm": _vllm,
    "validity": _validity,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: as every benchmark's, and ``--only``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    options, rest = parser.parse_known_args(argv)
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only takes of {', '.join(PARTS)}; not {', '.join(sorted(unknown))}")

    def measure(quick: bool) -> Iterator[Row]:
        for name in options.only:
            begun = time.perf_counter()
            yield from PARTS[name](quick)
            say(f"{name}: {time.perf_counter() - begun:.1f} s")

    return run_main(
        "decoding", measure, rest, packages=("llguidance", "xgrammar", "marisa-trie", "transformers", "torch")
    )


if __name__ == "__main__":
    sys.exit(main())
