"""Learning rates as functions of the iteration."""

from __future__ import annotations

import math
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


Schedule = Constant | Inv | Step | Cosine
SCHEDULES = {"constant": Constant, "inv": Inv, "step": Step, "cosine": Cosine}
