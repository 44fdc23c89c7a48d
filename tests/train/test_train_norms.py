from __future__ import annotations

from pathlib import Path

import torch
from obverse.engine.train.norms import RMSNorm, quicken_norms
from torch import nn


def test_values_and_gradients_are_autograds() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(nn.Parameter(torch.rand(8, dtype=torch.float64) + 0.5), 1e-5)
    y = torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-5)
    from obverse.engine.train.norms import _RMSNorm

    torch.testing.assert_close(_RMSNorm.apply(x, norm.weight, 1e-5), y)
    assert torch.autograd.gradcheck(_RMSNorm.apply, (x, norm.weight, 1e-5))


def test_a_models_norms_are_replaced_and_nothing_else_changes(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    quick = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert quicken_norms(quick) == 5
    assert list(plain.state_dict()) == list(quick.state_dict())
    ids = torch.arange(3, 43).reshape(2, 20)
    for model in (plain, quick):
        model(input_ids=ids, labels=ids).loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), quick.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-6)


class OddRMSNorm(nn.Module):
    """As Gemma's: the weight is what is added to one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (8,), 1 + self.weight, self.eps)


def test_a_norm_that_means_something_else_stays() -> None:
    model = nn.Sequential(OddRMSNorm(), nn.LayerNorm(8))
    assert quicken_norms(model) == 0
    assert isinstance(model[0], OddRMSNorm)
