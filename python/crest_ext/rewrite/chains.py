"""Convolutions with what is around them that one kernel can run: where they are in a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from crest_ext.nn.separable import SeparableConv2d
from crest_ext.nn.stem import StemConv2d, takes_along
from crest_ext.rewrite.calls import ACTIVATIONS, has_hooks


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


class Stem(NamedTuple):
    """The padding of an image, a convolution of it and its activation, by name; "" for none."""

    pad: str
    conv: str
    activation: str

    def fused(self, modules: Mapping[str, nn.Module], channels_last: bool) -> StemConv2d:
        conv, pad = modules[self.conv], modules[self.pad] if self.pad else None
        assert isinstance(conv, nn.Conv2d)
        activation = ACTIVATIONS[type(modules[self.activation])] if self.activation else "none"
        return StemConv2d.from_conv2d(conv, activation, pad, channels_last).eval()

    @property
    def first(self) -> str:
        return self.pad or self.conv

    def apart(self, modules: Mapping[str, nn.Module]) -> nn.Sequential:
        """The same as it is when it stays dense, with its activation in place."""
        parts = [modules[name] for name in (self.pad, self.conv) if name]
        return nn.Sequential(*parts, *([type(modules[self.activation])(inplace=True)] if self.activation else []))


def stem(modules: Mapping[str, nn.Module], follow: Mapping[str, str], name: str) -> Stem | None:
    """The one around a convolution, if it is one."""
    conv = modules[name]
    if not isinstance(conv, nn.Conv2d) or StemConv2d.refusal(conv):
        return None
    pad = next((one for one, two in follow.items() if two == name), "")
    if pad and (has_hooks(modules[pad]) or not takes_along(modules[pad], conv)):
        pad = ""
    return Stem(pad, name, activation_of(modules, follow, name))


def activation_of(modules: Mapping[str, nn.Module], follow: Mapping[str, str], name: str) -> str:
    """That behind a module alone, or ""."""
    after = follow.get(name, "")
    return after if after and type(modules[after]) in ACTIVATIONS else ""


def chains(modules: Mapping[str, nn.Module], follow: Mapping[str, str], free: Sequence[str]) -> Iterator[Chain]:
    """Those whose modules follow each other alone, with both convolutions `free` to be replaced."""
    for name in free:
        inner = activation_of(modules, follow, name)
        pointwise = follow.get(inner or name, "")
        if pointwise in free:
            first, second = modules[name], modules[pointwise]
            if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d):
                continue
            if SeparableConv2d.refusal(first, second) is None:
                yield Chain(name, inner, pointwise, activation_of(modules, follow, pointwise))
