"""DIMP-Loss in Lightning: the module is any other's, but for the loss and the batch's log q.

    pip install lightning
    python examples/losses/lightning_module.py

The rows are those of ``plain_pytorch.py`` in small: synthetic points of which two in five carry the label of a
neighbouring class, and log q of their labels from a checker (here the true noise, to keep the file short).
"""

import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from obverse import WeightedCrossEntropy

CLASSES, WIDTH = 5, 32


def make_rows(num_rows: int, wrong: float, seed: int) -> TensorDataset:
    """Points [N, WIDTH], labels [N] of which a share ``wrong`` is the next class, and log q of the labels [N]."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.7
    label = torch.randint(0, CLASSES, (num_rows,), generator=rng)
    points = centres[label] + 1.2 * torch.randn(num_rows, WIDTH, generator=rng)
    flipped = torch.rand(num_rows, generator=rng) < wrong
    log_quality = torch.where(flipped, math.log(0.05), math.log(0.9))
    return TensorDataset(points, torch.where(flipped, (label + 1) % CLASSES, label), log_quality)


def make_module() -> Any:
    """A LightningModule trained with DIMP-Loss; Lightning is imported here, so that the file can be read without."""
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, CLASSES))
            self.loss = WeightedCrossEntropy("dimp", weight_clip=(0.01, 10.0))
            self.right: list[Tensor] = []

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            points, labels, log_quality = batch
            loss, seen = self.loss.with_diagnostics(self.model(points), labels, log_quality=log_quality)
            self.log_dict({"loss": loss, "effective_rows": seen.effective_sample_size()})
            return loss

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.right.append(self.model(batch[0]).argmax(dim=1) == batch[1])

        def on_validation_epoch_end(self) -> None:
            self.log("accuracy", torch.cat(self.right).float().mean())
            self.right.clear()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=2e-3)

    return Classifier()


def main() -> float:
    """Train for three epochs and print the accuracy on clean rows."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="auto", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    rows, test = make_rows(10_000, 0.4, seed=1), make_rows(2_000, 0.0, seed=2)
    trainer.fit(make_module(), DataLoader(rows, 128, shuffle=True), DataLoader(test, 500))
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy {accuracy:.1%} on 2,000 clean rows; trained on 10,000 of which 40% are labelled wrongly")
    return accuracy


if __name__ == "__main__":
    main()
