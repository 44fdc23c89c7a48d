"""A weighted loss in a training loop of one's own: three lines differ from cross-entropy.

A generator has drawn 20,000 rows of ten classes; four in ten carry the label of a neighbouring class. 200 real rows
teach a small checker q(y|x); DIMP-Loss weighs each synthetic row by q / p, p being the model's own probability.

    python examples/losses/plain_pytorch.py
"""

import torch
from torch import Tensor, nn

from obverse import WeightedCrossEntropy

CLASSES, WIDTH = 10, 64


def make_rows(centres: Tensor, num_rows: int, wrong: float, seed: int) -> tuple[Tensor, Tensor]:
    """Points about their class's centre, a share ``wrong`` of them labelled as the next class."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(0, CLASSES, (num_rows,), generator=rng)
    points = centres[label] + 1.4 * torch.randn(num_rows, WIDTH, generator=rng)
    flipped = torch.rand(num_rows, generator=rng) < wrong
    return points, torch.where(flipped, (label + 1) % CLASSES, label)


def fit(rows: tuple[Tensor, Tensor], scheme: str, log_quality: Tensor | None, epochs: int, width: int) -> nn.Module:
    """A two-layer classifier trained with ``scheme``."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    loss_of = WeightedCrossEntropy(scheme, weight_clip=(0.01, 10.0))  # instead of nn.CrossEntropyLoss()
    points, labels = rows
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(256):
            inputs = {} if log_quality is None else {"log_quality": log_quality[part]}
            loss = loss_of(model(points[part]), labels[part], **inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    """The share of rows whose class the model finds."""
    with torch.no_grad():
        return float((model(rows[0]).argmax(dim=1) == rows[1]).double().mean())


def main(num_rows: int = 20_000) -> dict[str, float]:
    """Train with cross-entropy and with DIMP-Loss on the same rows, and print what each finds on clean rows."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.42
    real, test = make_rows(centres, 200, 0.0, seed=1), make_rows(centres, 5_000, 0.0, seed=2)
    synthetic = make_rows(centres, num_rows, 0.4, seed=3)
    checker = fit(real, "plain", None, epochs=60, width=32)
    with torch.no_grad():  # log q(y|x), once: a step of training never asks the checker again
        log_q = checker(synthetic[0]).log_softmax(dim=1).gather(1, synthetic[1][:, None]).squeeze(1)
    found = {"checker alone": accuracy(checker, test)}
    found["cross-entropy"] = accuracy(fit(synthetic, "plain", None, epochs=8, width=256), test)
    found["DIMP-Loss"] = accuracy(fit(synthetic, "dimp", log_q, epochs=8, width=256), test)
    for name, share in found.items():
        print(f"{name:<14} {share:.1%} of 5,000 clean rows")
    return found


if __name__ == "__main__":
    main()
