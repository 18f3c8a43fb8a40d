"""A teacher's outputs in the place of labels: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from cifar10 import BATCH, Crops, InBfloat16, standardized
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import data

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


class Remembered:
    """Images, each as it is or mirrored, with a teacher's outputs for them, which are found once."""

    def __init__(self, split: data.Split, teacher: nn.Module) -> None:
        x = torch.stack((split.x, split.x.flip(3)), 1)  # both of an image, side by side
        model = InBfloat16(teacher.eval())
        with torch.no_grad():
            y = torch.cat([model(standardized(part)) for part in x.flatten(0, 1).split(BATCH)])
        self.both = data.Split(x, y.view(len(x), 2, -1))

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(number)
        for x, y in data.Loader(self.both, BATCH, shuffle=True, seed=number):
            chosen = torch.arange(len(x)), torch.randint(2, (len(x),), generator=generator)
            yield standardized(x[chosen]), y[chosen]


def distance(y: Tensor, taught: Tensor) -> Tensor:
    """How far outputs are from the teacher's: the KL divergence of softened classes, in the gradient's old scale."""
    wanted = (taught / SOFTNESS).softmax(1)
    return SOFTNESS**2 * F.kl_div((y / SOFTNESS).log_softmax(1), wanted, reduction="batchmean")


def taught_by(teacher: nn.Module) -> dict[str, Any]:
    """For cifar10.train_on to train by a teacher's outputs instead of labels."""
    return {"batches": lambda split, number: Taught(Crops(split, number), teacher), "loss": distance}


def taught_once_by(teacher: nn.Module, split: data.Split) -> dict[str, Any]:
    """The same by outputs that are found once, for the images and their mirrored ones."""
    remembered = Remembered(split, teacher)
    return {"batches": lambda _, number: remembered.epoch(number), "loss": distance}
