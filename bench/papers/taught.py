"""A teacher's outputs in the place of labels: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from cifar10 import Crops, InBfloat16
from torch import Tensor, nn
from torch.nn import functional as F

SOFTNESS = 4.0  # by which outputs are divided before they are compared


class Taught:
    """Crops with a teacher's outputs for them in place of classes. Iterating is one epoch."""

    def __init__(self, crops: Crops, teacher: nn.Module) -> None:
        self.crops, self.teacher = crops, InBfloat16(teacher.eval())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, _ in self.crops:
            with torch.no_grad():
                taught = self.teacher(x)
            yield x, taught


def distance(y: Tensor, taught: Tensor) -> Tensor:
    """How far outputs are from the teacher's: the KL divergence of softened classes, in the gradient's old scale."""
    wanted = (taught / SOFTNESS).softmax(1)
    return SOFTNESS**2 * F.kl_div((y / SOFTNESS).log_softmax(1), wanted, reduction="batchmean")


def taught_by(teacher: nn.Module) -> dict[str, Any]:
    """For cifar10.train_on to train by a teacher's outputs instead of labels."""
    return {"batches": lambda split, number: Taught(Crops(split, number), teacher), "loss": distance}
