"""A batch to its weighted loss: token sequences or class labels, one weight a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from obverse.engine.records.forward import answer_logits, answer_token_log_probs, can_gather, collate, pad_rows
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.train.examples import WEIGHT_COLUMN, Examples

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ClassObjective", "Objective", "SequenceObjective", "make_objective"]

# The loss's scheme for each method. `imp` takes the weights that the weigh stage computed (and clipped) already.
SCHEME = {"ce": "plain", "imp": "sample_weight", "dimp": "dimp"}


class Step(NamedTuple):
    """The loss of one batch, to differentiate, and the number of real tokens in it."""

    loss: Tensor
    num_tokens: int


class Objective(Protocol):
    """What the training loop needs to know of a task."""

    def loss(self, model: Any, rows: np.ndarray) -> Step:
        """The weighted loss of the examples ``rows``."""
        ...

    def log_probs(self, model: Any, rows: np.ndarray) -> Tensor:
        """[B] float32 log p(target | text) of the examples ``rows``; for sequences the mean over tokens."""
        ...


class _Weighted:
    def __init__(self, examples: Examples, method: str, device: torch.device) -> None:
        self.examples, self.device = examples, device
        self.scheme: Any = SCHEME[method]
        self.column = WEIGHT_COLUMN[method]

    def weights(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The loss's keyword for this method's weights, if it has any."""
        import torch

        if self.column is None or self.examples.weight is None:
            return {}
        return {self.column: torch.from_numpy(self.examples.weight[rows]).to(self.device)}


class SequenceObjective(_Weighted):
    """Answer tokens given text; one weight a sequence, on the mean over all tokens of the batch."""

    def __init__(self, examples: Examples, form: SequenceFormat, method: str, model: Any, device: torch.device) -> None:
        from obverse.engine.losses import SequenceWeightedCrossEntropy

        super().__init__(examples, method, device)
        self.form = form
        self.decoder_start = getattr(model.config, "decoder_start_token_id", None)
        self.criterion = SequenceWeightedCrossEntropy(self.scheme, reduction="token_mean")
        first = np.arange(min(1, len(examples)))
        self.gather = len(first) > 0 and can_gather(model, self._batch(first))

    def _batch(self, rows: np.ndarray) -> Any:
        chosen = [self.examples.sequences[i] for i in rows]
        return collate(chosen, self.form, device=self.device, decoder_start=self.decoder_start)

    def loss(self, model: Any, rows: np.ndarray) -> Step:
        """See `Objective`."""
        batch = self._batch(rows)
        logits = answer_logits(model, batch, gather=self.gather)
        return Step(self.criterion(logits, batch.targets, **self.weights(rows)), batch.num_tokens)

    def log_probs(self, model: Any, rows: np.ndarray) -> Tensor:
        """See `Objective`."""
        return answer_token_log_probs(model, self._batch(rows), gather=self.gather)


class ClassObjective(_Weighted):
    """A label given text."""

    def __init__(self, examples: Examples, pad_id: int, method: str, device: torch.device) -> None:
        from obverse.engine.losses import WeightedCrossEntropy

        super().__init__(examples, method, device)
        self.pad_id = pad_id
        self.criterion = WeightedCrossEntropy(self.scheme)

    def _logits(self, model: Any, rows: np.ndarray) -> tuple[Tensor, Tensor, int]:
        import torch

        assert self.examples.targets is not None
        ids = [self.examples.sequences[i].input_ids for i in rows]
        input_ids, mask = pad_rows(ids, self.pad_id)
        logits = model(input_ids=input_ids.to(self.device), attention_mask=mask.to(self.device)).logits
        targets = torch.from_numpy(self.examples.targets[rows]).to(self.device)
        return logits, targets, sum(map(len, ids))

    def loss(self, model: Any, rows: np.ndarray) -> Step:
        """See `Objective`."""
        logits, targets, num_tokens = self._logits(model, rows)
        return Step(self.criterion(logits, targets, **self.weights(rows)), num_tokens)

    def log_probs(self, model: Any, rows: np.ndarray) -> Tensor:
        """See `Objective`."""
        logits, targets, _ = self._logits(model, rows)
        return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def make_objective(
    examples: Examples, *, form: SequenceFormat | None, tokenizer: Any, method: str, model: Any, device: torch.device
) -> Objective:
    """The objective of ``examples``: sequences where there is a ``form``, else classes."""
    if form is not None:
        return SequenceObjective(examples, form, method, model, device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return ClassObjective(examples, int(pad or 0), method, device)
