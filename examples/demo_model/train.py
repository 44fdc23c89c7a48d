"""Train the demo generator: triples in, English out, from nothing but the geography graph and the grammar.

From the repository's root, in the project's environment::

    python -m examples.demo_model.train --out engine/generate/demo_model --minutes 30 --seed 0

Length is given in ``--steps`` (the same run every time) or in ``--minutes`` of wall time (the learning rate then
follows the clock). The best checkpoint by mention recall on names held out of the corpus is kept in ``--out``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed
from torch.multiprocessing.spawn import start_processes

from obverse.engine.graph.geography import load_geography
from obverse.engine.records.linearise import linearise

from .corpus import Corpus
from .export import generate_texts, install, mention_recall, read_weights
from .grammar import entities_of
from .model import LeanLlama, Shape
from .tokenizer import read_tokenizer, train_tokenizer

GROUPS = ("seen", "held_out", "invented")


@dataclass
class Progress:
    """How far the run is, by steps or by the clock, in [0, 1]."""

    steps: int | None
    minutes: float
    started: float = field(default_factory=time.monotonic)

    def at(self, step: int) -> float:
        """The share of the run that is done at ``step``."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, (time.monotonic() - self.started) / (60 * self.minutes))


class Batches:
    """Endless batches of about equal size in tokens, like lengths together: the share of process ``rank``."""

    def __init__(
        self, corpus: Corpus, tokenizer: Any, *, tokens: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.corpus, self.tokenizer, self.tokens = corpus, tokenizer, tokens
        self.rank, self.world = rank, world
        self.rng = np.random.default_rng(seed)
        self.next_number = 0
        self.max_size = 5
        self.eos = tokenizer.token_to_id("<eos>")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from self._chunk(2048)

    def _chunk(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        numbers = range(self.next_number, self.next_number + count)
        self.next_number += count
        examples = [self.corpus.example(n, max_size=self.max_size) for n in numbers]
        prompts = self.tokenizer.encode_batch([f"{linearise(e.triples)} [text]" for e in examples])
        answers = self.tokenizer.encode_batch([f" {e.text}" for e in examples], add_special_tokens=False)
        rows = [(p.ids, [*a.ids, self.eos]) for p, a in zip(prompts, answers, strict=True)]
        rows = [row for row in rows if len(row[0]) + len(row[1]) <= 320]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches, first = [], 0
        for last in range(1, len(rows) + 1):
            width = sum(map(len, rows[min(last, len(rows) - 1)]))
            if last == len(rows) or (last - first + 1) * width > self.tokens:
                batches.append(rows[first:last])
                first = last
        order = self.rng.permutation(len(batches))
        for i in order[self.rank : len(order) // self.world * self.world : self.world]:
            yield _pad(batches[i])


def _pad(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and next-token targets [B, T]; only answer tokens are targets, the rest is -100."""
    width = max(len(p) + len(a) for p, a in rows) - 1
    ids = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width), -100, np.int64)
    for i, (prompt, answer) in enumerate(rows):
        whole = prompt + answer
        ids[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(prompt) - 1 : len(whole) - 1] = answer
    return torch.from_numpy(ids), torch.from_numpy(targets)


def learning_rate(peak: float, done: float, step: int, warm_up: int = 100) -> float:
    """Linear warm-up, then a cosine from ``peak`` to 2% of it."""
    cosine = 0.5 * (1 + np.cos(np.pi * done))
    return float(peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * cosine))


def evaluate(folder: Path, corpus: Corpus, *, count: int, temperature: float) -> dict[str, Any]:
    """Mention recall by group and a few texts, from the files in ``folder`` as a user would load them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result: dict[str, Any] = {}
    for group in GROUPS:
        examples = [corpus.probe(n, group) for n in range(count)]
        texts = generate_texts(model, tokenizer, examples, temperature=temperature, seed=0)
        entity, whole = mention_recall(examples, texts)
        result[group] = {"mention_recall": round(entity, 4), "texts_with_all": round(whole, 4)}
        result[group]["samples"] = [
            {"triples": linearise(e.triples), "text": text} for e, text in zip(examples[:5], texts[:5], strict=True)
        ]
    return result


def make_tokenizer(corpus: Corpus, vocab_size: int, examples: int = 30_000) -> Any:
    """The tokenizer of the corpus's first ``examples``: texts, linearisations, and every name once more."""

    def texts() -> Iterator[str]:
        for number in range(examples):
            example = corpus.example(number, renamed=0.2)
            yield example.text
            yield from (f" {name}" for name in entities_of(example.triples))
            yield from (f" {triple.predicate}" for triple in example.triples)

    return train_tokenizer(texts(), vocab_size)


def _groups(model: LeanLlama) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]


@dataclass(frozen=True)
class Plan:
    """What a run is asked for (the command's options)."""

    out: Path
    log: Path | None
    minutes: float
    steps: int | None
    seed: int
    processes: int
    layers: int
    peak: float
    tokens: int
    easy: float
    every: float
    start: Path | None


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model's files.")
@click.option("--minutes", default=30.0, show_default=True, help="Wall time to train for, evaluations included.")
@click.option("--steps", type=int, help="Train for so many steps instead; the same run every time.")
@click.option("--seed", default=0, show_default=True, help="Seed of corpus, weights and order.")
@click.option("--processes", default=2, show_default=True, help="Data-parallel processes of one thread each.")
@click.option("--layers", default=4, show_default=True, help="Decoder layers.")
@click.option("--peak", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--tokens", default=3072, show_default=True, help="Tokens in a process's batch, padding included.")
@click.option("--easy", default=0.12, show_default=True, help="First share of the run with sets of 1 and 2 only.")
@click.option("--every", default=4.0, show_default=True, help="Minutes between evaluations.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Go on from this model's folder.")
@click.option("--log", type=click.Path(path_type=Path), help="JSON lines of losses and evaluations.")
def main(**options: Any) -> None:
    """Train the demo generator model and keep the best checkpoint in OUT."""
    plan = Plan(**options)
    if plan.processes == 1:
        _work(0, plan, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_work, args=(plan, f"file://{folder}/meet"), nprocs=plan.processes)  # type: ignore[no-untyped-call]


def _work(rank: int, plan: Plan, meet: str) -> None:
    """One process of the run; gradients are averaged over all of them at every step."""
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    if plan.processes > 1:
        torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=plan.processes)
    corpus = Corpus(load_geography(), seed=plan.seed)
    tokenizer = make_tokenizer(corpus, 4096) if plan.start is None else read_tokenizer(plan.start)
    model = LeanLlama(Shape(vocab_size=tokenizer.get_vocab_size(), layers=plan.layers))
    if plan.start is not None:
        read_weights(model, plan.start)
    batches = Batches(corpus, tokenizer, tokens=plan.tokens, seed=plan.seed, rank=rank, world=plan.processes)
    Trainer(model, corpus, tokenizer, plan, rank).run(batches)
    if plan.processes > 1:
        torch.distributed.destroy_process_group()


class Trainer:
    """The loop: steps, losses to the log, evaluations now and then, the best checkpoint kept (all by process 0)."""

    def __init__(self, model: LeanLlama, corpus: Corpus, tokenizer: Any, plan: Plan, rank: int) -> None:
        self.model, self.corpus, self.tokenizer, self.plan, self.rank = model, corpus, tokenizer, plan, rank
        self.progress = Progress(plan.steps, plan.minutes)
        self.optimiser = torch.optim.AdamW(_groups(model), lr=plan.peak, betas=(0.9, 0.98), fused=True)
        # Every gradient is a view of one vector, with two more places at its end for the progress and the loss.
        self.flat = torch.zeros(sum(p.numel() for p in model.parameters()) + 2)
        first = 0
        for p in model.parameters():
            p.grad = self.flat[first : first + p.numel()].view_as(p)
            first += p.numel()
        self.best = -1.0  # the best share of held-out texts that name everything
        self.seen_tokens = 0

    def run(self, batches: Batches) -> None:
        """Train to the end of the progress."""
        checked = time.monotonic()
        losses: list[float] = []
        done = 0.0
        for step, (ids, targets) in enumerate(batches):
            batches.max_size = 2 if done < self.plan.easy else 5
            rate = learning_rate(self.plan.peak, done, step)
            done, loss = self._step(ids, targets, rate, self.progress.at(step + 1))
            losses.append(loss)
            over = done >= 1.0
            if self.rank == 0 and step % 50 == 49:
                self._report(step, done, losses)
                losses = []
            if self.rank == 0 and (over or time.monotonic() - checked > 60 * self.plan.every):
                self._check(step, final=over)
                checked = time.monotonic()
            if over:
                return

    def _step(self, ids: torch.Tensor, targets: torch.Tensor, rate: float, done: float) -> tuple[float, float]:
        """One update; returns progress and loss, both averaged over the processes so that all agree."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.flat.zero_()
        loss = self.model(ids, targets)
        loss.backward()
        self.flat[-2], self.flat[-1] = done, loss.detach()
        if self.plan.processes > 1:
            torch.distributed.all_reduce(self.flat)
            self.flat /= self.plan.processes
        done, mean_loss = float(self.flat[-2]), float(self.flat[-1])
        self.flat[:-2] *= min(1.0, 1.0 / (float(self.flat[:-2].norm()) + 1e-6))
        self.optimiser.step()
        self.seen_tokens += ids.numel() * self.plan.processes
        return done, mean_loss

    def _report(self, step: int, done: float, losses: list[float]) -> None:
        seconds = time.monotonic() - self.progress.started
        row = {
            "step": step + 1,
            "done": round(done, 4),
            "loss": round(float(np.mean(losses)), 4),
            "tokens": self.seen_tokens,
            "tokens_per_second": round(self.seen_tokens / seconds),
            "seconds": round(seconds, 1),
        }
        self._write(row)

    def _check(self, step: int, *, final: bool) -> None:
        scratch = self.plan.out.parent / f".{self.plan.out.name}_check"
        install(self.model, self.tokenizer, scratch)
        result = evaluate(scratch, self.corpus, count=200 if final else 60, temperature=0.7)
        score = result["held_out"]["texts_with_all"]
        kept = score >= self.best or final
        if kept:
            self.best = score
            install(self.model, self.tokenizer, self.plan.out)
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
        self._write({"step": step + 1, "kept": kept, **result})

    def _write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False)
        click.echo(line)
        if self.plan.log is not None:
            with self.plan.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
