"""Model, optimiser and schedule of one training: one step at a time, and all of its state in one dictionary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from obverse.engine.records.keys import derive_seed
from obverse.engine.train.objective import Objective, Step

if TYPE_CHECKING:
    import torch

__all__ = ["Learner", "autocast"]

MAX_GRAD_NORM = 1.0


class Learner:
    """AdamW on float32 weights, computing in ``dtype``, learning rate up and down in straight lines.

    A step depends on the state before it and on (seed, step number), never on what ran in the process before:
    dropout draws from a generator seeded per step.
    """

    def __init__(
        self,
        model: Any,
        *,
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        total_steps: int,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        import torch

        self.model, self.dtype, self.seed = model, dtype, seed
        self.device = next(model.parameters()).device
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.peak = learning_rate
        self.step_number = 0
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=True)

    def learning_rate(self, step: int) -> float:
        """Learning rate of step ``step`` (0 for the first): linear warm-up, then linear decay to zero."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.peak * (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)

    def step(self, objective: Objective, rows: np.ndarray) -> tuple[float, int]:
        """One update on the examples ``rows``; returns its loss and number of tokens."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step_number)
        self.model.train()
        with _seeded(derive_seed(self.seed, "train/dropout", self.step_number), self.device):
            with autocast(self.device, self.dtype):
                step: Step = objective.loss(self.model, rows)
            step.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        return float(step.loss.detach()), step.num_tokens

    def log_probs(self, objective: Objective, batches: list[np.ndarray]) -> np.ndarray:
        """[N] float32 log p(target | text) in the order of the batches' rows (row i at place i)."""
        import torch

        result = np.zeros(sum(map(len, batches)), dtype=np.float32)
        self.model.eval()
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for rows in batches:
                result[rows] = objective.log_probs(self.model, rows).cpu().numpy()
        return result

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step_number,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = state["step"]


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside; the caller's generators are as they were afterwards."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Multiply in ``dtype`` (nothing to do for float32); sums, norms and losses stay in float32."""
    import torch

    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
