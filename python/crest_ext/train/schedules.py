"""Learning rates as functions of the iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """start, always."""

    start: float

    def at(self, iteration: int, iterations: int) -> float:  # noqa: ARG002 (the face all schedules have)
        return self.start


@dataclass(frozen=True)
class Inv:
    """Caffe's "inv": start * (1 + gamma * iteration)^-power."""

    start: float
    gamma: float = 1e-4
    power: float = 0.75

    def at(self, iteration: int, iterations: int) -> float:  # noqa: ARG002
        return self.start * (1 + self.gamma * iteration) ** -self.power


@dataclass(frozen=True)
class Step:
    """start, times gamma after every `size` iterations."""

    start: float
    size: int
    gamma: float = 0.1

    def at(self, iteration: int, iterations: int) -> float:  # noqa: ARG002
        return self.start * self.gamma ** (iteration // self.size)


@dataclass(frozen=True)
class Cosine:
    """From start to end along half a cosine."""

    start: float
    end: float = 0.0

    def at(self, iteration: int, iterations: int) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


@dataclass(frozen=True)
class Plateau:
    """start, halved when the validation error has not dropped for some epochs; its epochs are counted, not given.

    Attributes:
        start: of the first epoch.
        patience: epochs without a new lowest error before the rate is halved.
        cooldown: epochs after that in which it is not halved again.
        stop: epochs without a new lowest error that end the training.
        fall: training also ends once the rate has fallen by more than this factor.

    Source: Urban et al., "Do Deep Convolutional Nets Really Need to be Deep and Convolutional?", ICLR 2017.
    """

    start: float
    patience: int = 10
    cooldown: int = 8
    stop: int = 30
    fall: float = 2000.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start > 0):
            raise ValueError(f"Plateau: start must be a finite number > 0, got {self.start!r}")
        for name, least in (("patience", 1), ("cooldown", 0), ("stop", 1), ("fall", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"Plateau: {name} must be at least {least}, got {getattr(self, name)!r}")

    def after(self, errors: Sequence[float]) -> float | None:
        """The rate of the next epoch, or None to stop.

        Args:
            errors: validation errors after each epoch so far; there is no other state, so a resumed training needs
                nothing but these. One that is not a number is no improvement.
        """
        halvings, best, best_epoch, halved_epoch = 0, math.inf, 0, -math.inf
        for epoch, error in enumerate(errors, 1):
            if error < best:
                best, best_epoch = error, epoch
            if epoch - best_epoch >= self.stop:
                return None
            if epoch - best_epoch >= self.patience and epoch - halved_epoch > self.cooldown:
                halvings, halved_epoch = halvings + 1, epoch
            if 2.0**halvings > self.fall:
                return None
        return self.start * 0.5**halvings


Schedule = Constant | Inv | Step | Cosine
SCHEDULES = {"constant": Constant, "inv": Inv, "step": Step, "cosine": Cosine}
