"""Train one model with one method, in a plain PyTorch loop that survives SIGKILL."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from obverse.engine.errors import InputError, RunError
from obverse.engine.records.keys import content_hash
from obverse.engine.records.models import (
    CARD,
    Task,
    context_length,
    load_classifier,
    load_sequence_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    quiet_transformers,
    resolve_model,
    sequence_format,
)
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.records.shards import read_json, write_json
from obverse.engine.train.batches import epoch_batches, sorted_batches
from obverse.engine.train.checkpoint import Checkpoints
from obverse.engine.train.examples import Examples, encode_rows
from obverse.engine.train.learner import Learner
from obverse.engine.train.objective import Objective, make_objective
from obverse.engine.train.settings import TrainSettings

if TYPE_CHECKING:
    import torch

__all__ = ["train_model"]

CHECKPOINT_SECONDS = 30.0
CURVE_POINTS = 200
_SMALL_MODEL = 50_000_000


def _default_rate(task: Task, parameters: int) -> float:
    """Small models want larger steps: at 5e-5 a 22M-parameter encoder learns nothing from a few hundred rows."""
    if parameters >= _SMALL_MODEL:
        return 5e-5
    return 1e-3 if task == "extraction" else 2e-4


def train_model(
    rows: pa.Table,
    settings: TrainSettings,
    *,
    task: Task,
    method: str,
    seed: int,
    out: Path,
    labels: Sequence[str] | None = None,
    selection: pa.Table | None = None,
    on_progress: Callable[[int], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train on ``rows`` and write a Hugging Face model folder.

    A process killed at any moment and started again with the same arguments goes on from the last checkpoint
    (every ``checkpoint_seconds`` and, unless one was just written, at each epoch's end) and ends with the same
    weights, bit for bit, on the same machine with the same number of threads. A finished training is not
    repeated: its facts are returned.

    Args:
        rows: id, text, and triplets (extraction) or label (classification); method ``imp`` needs
            ``sample_weight``, method ``dimp`` needs ``log_quality`` (natural log; for triplet sets the mean per
            token, as `log_probs` gives).
        settings: see `TrainSettings`.
        task: which kind of target.
        method: ``ce``, ``imp`` or ``dimp`` (arXiv 2410.21526).
        seed: decides the order of rows, dropout, and a classifier's first head.
        out: folder to write; ``obverse.json`` says what the model is, ``training.json`` (last) how it went.
        labels: every label, in the order of the classifier's outputs; None: those of ``rows``, sorted.
        selection: rows whose mean log-likelihood chooses the best epoch; None: the last epoch is kept.
        on_progress: called with rows newly done; rows times epochs in all.
        checkpoint_seconds: seconds between checkpoints.

    Returns:
        The content of ``training.json``: rows, steps, seconds, tokens_per_second, the loss's curve.

    Raises:
        InputError: rows, labels or model can't be used, or no row fits ``max_length``.
    """
    plan = _prepare(rows, settings, task, method, seed, labels, selection)
    done = _finished(out, plan.key)
    if done is not None:
        return done
    run = _Run(plan, Checkpoints(out / "checkpoint", plan.key), on_progress, checkpoint_seconds)
    run.train()
    return run.write(out)


@dataclass(frozen=True)
class _Plan:
    """All that is settled before the first step."""

    settings: TrainSettings
    task: Task
    method: str
    seed: int
    labels: list[str] | None
    tokenizer: Any
    form: SequenceFormat | None
    model: Any
    source: str
    examples: Examples
    selection: Examples | None
    device: torch.device
    dtype: torch.dtype
    key: str

    def objective(self, examples: Examples, method: str) -> Objective:
        return make_objective(
            examples,
            form=self.form,
            tokenizer=self.tokenizer,
            method=method,
            model=self.model,
            device=self.device,
        )


def _prepare(
    rows: pa.Table,
    settings: TrainSettings,
    task: Task,
    method: str,
    seed: int,
    labels: Sequence[str] | None,
    selection: pa.Table | None,
) -> _Plan:
    device = pick_device()
    source = resolve_model(settings.model, task)
    tokenizer = load_tokenizer(source)
    names = None
    # On a CPU the fused attention's backward pass is slower than plain matrix products at these lengths
    # (measured: a third of a step at 100 tokens).
    attention = "eager" if device.type == "cpu" else None
    if task == "classification":
        names = list(labels) if labels else sorted({label for label in rows["label"].to_pylist() if label is not None})
        model = load_classifier(source, labels=names, seed=seed, attention=attention)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        form = None
    else:
        model = load_sequence_model(source, attention=attention)
        form = sequence_format(tokenizer, model.config, settings.form)
    limit = min(settings.max_length, context_length(model.config) or settings.max_length)

    def encode(table: pa.Table, method: str) -> Examples:
        return encode_rows(
            table, task=task, tokenizer=tokenizer, form=form, labels=names, max_length=limit, method=method
        )

    examples = encode(rows, method)
    if not len(examples):
        raise InputError(f"at least one training row of at most {limit} tokens", seen=f"{rows.num_rows} rows")
    chosen = encode(selection, "ce") if selection is not None and selection.num_rows else None
    # `methods` lists what to train beside this model: it changes nothing in it.
    shown = settings.model_dump(exclude={"methods"})
    dtype = pick_dtype(settings.dtype, device)
    facts = [shown, task, method, seed, names, str(dtype), examples.digest(), chosen.digest() if chosen else None]
    key = content_hash([*facts, _weights_digest(model)])
    return _Plan(
        settings, task, method, seed, names, tokenizer, form, model.to(device), str(source), examples, chosen,
        device, dtype, key,
    )  # fmt: skip


def _weights_digest(model: Any) -> str:
    """A digest of the starting weights: a model folder may be written anew under its old name."""
    import hashlib

    hasher = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        hasher.update(name.encode())
        hasher.update(value.detach().contiguous().reshape(-1)[:65536].cpu().numpy().tobytes())
    return hasher.hexdigest()


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    if not (out / "training.json").exists() or not (out / CARD).exists():
        return None
    if read_json(out / CARD).get("key") != key:
        return None
    facts: dict[str, Any] = read_json(out / "training.json")
    return facts


class _Run:
    """The loop and what it has seen."""

    def __init__(
        self,
        plan: _Plan,
        checkpoints: Checkpoints,
        on_progress: Callable[[int], None] | None,
        checkpoint_seconds: float,
    ) -> None:
        self.plan, self.checkpoints = plan, checkpoints
        self.advance = on_progress or (lambda _: None)
        self.every = checkpoint_seconds
        settings, count = plan.settings, len(plan.examples)
        self.steps_per_epoch = -(-count // settings.batch_size)
        total = self.steps_per_epoch * settings.epochs
        size = sum(p.numel() for p in plan.model.parameters())
        self.learner = Learner(
            plan.model,
            learning_rate=settings.learning_rate or _default_rate(plan.task, size),
            weight_decay=settings.weight_decay,
            warmup_steps=int(np.ceil(settings.warmup_ratio * total)),
            total_steps=total,
            dtype=plan.dtype,
            seed=plan.seed,
        )
        self.losses: list[float] = []
        self.selection_losses: list[float] = []
        self.best: dict[str, Any] = {}
        """Weights of the epoch with the least selection loss so far."""
        self.seconds, self.tokens, self.resumed = 0.0, 0, 0

    def train(self) -> None:
        """Every step that is not in the checkpoint yet."""
        plan = self.plan
        self._resume()
        objective = plan.objective(plan.examples, plan.method)
        judge = plan.objective(plan.selection, "ce") if plan.selection is not None else None
        self.clock = self.saved_at = time.monotonic()
        for epoch in range(self.learner.step_number // self.steps_per_epoch, plan.settings.epochs):
            batches = epoch_batches(plan.examples.lengths, plan.settings.batch_size, seed=plan.seed, epoch=epoch)
            for batch in batches[self.learner.step_number - epoch * self.steps_per_epoch :]:
                loss, tokens = self.learner.step(objective, batch)
                if not np.isfinite(loss):
                    raise RunError(
                        f"the loss became {loss} at step {self.learner.step_number}; "
                        f"lower learning_rate ({self.learner.peak:g})"
                    )
                self.losses.append(loss)
                self.tokens += tokens
                self.advance(len(batch))
                if self.learner.step_number % self.steps_per_epoch:
                    self._save(self.every)
            if judge is not None:
                self._judge(judge)
            self._save(self.every / 10)

    def _judge(self, judge: Objective) -> None:
        assert self.plan.selection is not None
        batches = sorted_batches(self.plan.selection.lengths, self.plan.settings.batch_size)
        loss = -float(self.learner.log_probs(judge, batches).mean(dtype=np.float64))
        if all(loss < earlier for earlier in self.selection_losses):
            self.best = {name: value.detach().cpu().clone() for name, value in self.plan.model.state_dict().items()}
        self.selection_losses.append(loss)

    def _resume(self) -> None:
        skipped = self.plan.examples.num_too_long * self.plan.settings.epochs
        state = self.checkpoints.load()
        if state is not None:
            self.learner.load(state["learner"])
            self.losses, self.selection_losses = state["losses"], state["selection_losses"]
            self.best = state["best"]
            self.seconds, self.tokens, self.resumed = state["seconds"], state["tokens"], state["resumed"] + 1
            epochs, steps = divmod(self.learner.step_number, self.steps_per_epoch)
            skipped += epochs * len(self.plan.examples)
            batches = epoch_batches(
                self.plan.examples.lengths, self.plan.settings.batch_size, seed=self.plan.seed, epoch=epochs
            )
            skipped += sum(map(len, batches[:steps]))
        if skipped:
            self.advance(skipped)

    def _save(self, after: float) -> None:
        """Write a checkpoint if the last one is at least ``after`` seconds old (an epoch can take less)."""
        now = time.monotonic()
        if now - self.saved_at < after:
            return
        self.seconds += now - self.clock
        self.clock = now
        self.checkpoints.save(
            {
                "learner": self.learner.state(),
                "losses": self.losses,
                "selection_losses": self.selection_losses,
                "best": self.best,
                "seconds": self.seconds,
                "tokens": self.tokens,
                "resumed": self.resumed,
            }
        )
        self.saved_at = time.monotonic()

    def write(self, out: Path) -> dict[str, Any]:
        """Write the model folder; ``training.json`` comes last, so that its presence means all is there."""
        plan = self.plan
        self.seconds += time.monotonic() - self.clock
        best = None
        if self.selection_losses:
            best = int(np.argmin(self.selection_losses))
            plan.model.load_state_dict(self.best)
        (out / "training.json").unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        plan.model.eval()
        with quiet_transformers():
            plan.model.save_pretrained(out)
            plan.tokenizer.save_pretrained(out)
        write_json(
            out / CARD,
            {
                "task": plan.task,
                "method": plan.method,
                "labels": plan.labels,
                "form": plan.form.form if plan.form else None,
                "architecture": plan.form.architecture if plan.form else "classifier",
                "started_from": plan.source,
                "seed": plan.seed,
                "settings": plan.settings.model_dump(),
                "key": plan.key,
            },
        )
        facts = self._facts(best)
        write_json(out / "training.json", facts)
        self.checkpoints.remove()
        return facts

    def _facts(self, best: int | None) -> dict[str, Any]:
        import torch

        plan = self.plan
        return {
            "method": plan.method,
            "rows": len(plan.examples),
            "rows_too_long": plan.examples.num_too_long,
            "epochs": plan.settings.epochs,
            "steps": self.learner.step_number,
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "parameters": sum(p.numel() for p in plan.model.parameters()),
            "learning_rate": self.learner.peak,
            "device": str(plan.device),
            "dtype": str(plan.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "resumed": self.resumed,
            "loss": _curve(self.losses),
            "selection_loss": self.selection_losses,
            "best_epoch": best,
        }


def _curve(losses: list[float]) -> list[dict[str, float]]:
    """At most `CURVE_POINTS` means over equal runs of steps, each with the last step of its run."""
    runs = np.array_split(np.array(losses), min(len(losses), CURVE_POINTS))
    ends = np.cumsum([len(run) for run in runs])
    return [{"step": int(end), "loss": round(float(run.mean()), 6)} for end, run in zip(ends, runs, strict=True)]
