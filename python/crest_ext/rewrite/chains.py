"""Depthwise convolutions with the pointwise ones behind them, which one kernel can run: where they are in a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from crest_ext.nn.separable import SeparableConv2d

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}


class Chain(NamedTuple):
    """A depthwise convolution, its activation, a pointwise convolution and its activation, by name; "" for none."""

    depthwise: str
    inner: str
    pointwise: str
    outer: str

    @property
    def last(self) -> str:
        return self.outer or self.pointwise

    def activations(self, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
        inner, outer = (ACTIVATIONS[type(modules[name])] if name else "none" for name in (self.inner, self.outer))
        return inner, outer

    def fused(self, modules: Mapping[str, nn.Module]) -> SeparableConv2d:
        first, second = modules[self.depthwise], modules[self.pointwise]
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        return SeparableConv2d.from_conv2d(first, second, *self.activations(modules)).eval()


def chains(modules: Mapping[str, nn.Module], follow: Mapping[str, str], free: Sequence[str]) -> Iterator[Chain]:
    """Those whose modules follow each other alone, with both convolutions `free` to be replaced."""

    def activation_behind(name: str) -> str:
        after = follow.get(name, "")
        return after if after and type(modules[after]) in ACTIVATIONS else ""

    for name in free:
        inner = activation_behind(name)
        pointwise = follow.get(inner or name, "")
        if pointwise in free:
            first, second = modules[name], modules[pointwise]
            if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d):
                continue
            if SeparableConv2d.refusal(first, second) is None:
                yield Chain(name, inner, pointwise, activation_behind(pointwise))
