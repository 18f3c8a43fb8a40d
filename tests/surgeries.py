"""Small networks under surgery, and a training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import Surgery, SurgeryConfig


def always(c_rate: Any = 0.0, **kwargs: Any) -> SurgeryConfig:
    """Updates the masks in every step."""
    return SurgeryConfig(c_rate, power=0.0, **kwargs)


def linear(*weights: float) -> nn.Linear:
    """One output, no bias."""
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data.copy_(torch.tensor([weights]))
    return layer


def lenet() -> nn.Sequential:
    """Small, with two convolutions and two linear layers: 0, 2, 4, 6."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Flatten()),
        *(nn.Linear(54, 16), nn.ReLU(), nn.Linear(16, 3)),
    )


X, Y = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3


def train(model: nn.Module, optimizer: torch.optim.Optimizer, surgery: Surgery, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        surgery.step()


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if name.endswith("mask")}
