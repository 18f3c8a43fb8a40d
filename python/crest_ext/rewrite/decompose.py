"""Convolutions as vertical and horizontal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

from torch import nn

from crest_ext.nn.layers import layers
from crest_ext.nn.replace import Model, reason_not_to_replace, replace_layers
from crest_ext.rewrite.materialize import materialize


@dataclass(frozen=True)
class DecomposedLayer:
    """What was made of one convolution."""

    name: str
    before: int  # weights, biases not counted
    after: int
    note: str  # why it is left as it is, or ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.name}: left as it is: {self.note}"
        return f"{self.name}: {self.before:,} -> {self.after:,} weights"


@dataclass(frozen=True)
class DecomposeReport:
    """What `decompose` did, convolution by convolution."""

    layers: tuple[DecomposedLayer, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))


@overload
def decompose(model: Model, *, explain: Literal[False] = False) -> Model: ...
@overload
def decompose(model: Model, *, explain: Literal[True]) -> tuple[Model, DecomposeReport]: ...


def decompose(model: Model, *, explain: bool = False) -> Model | tuple[Model, DecomposeReport]:
    """A copy whose convolutions are pairs of one-dimensional ones, with ReLU between: to train from scratch.

    A Conv2d with n filters (c, kh, kw) becomes a Conv2d with n filters (c, kh, 1) and a bias, ReLU, and a Conv2d with n
    filters (n, 1, kw) and the layer's bias, as an nn.Sequential in its place, which keeps its stride, padding and
    dilation: n (c kh + n kw) weights in place of n c kh kw. The ReLU after the pair is the one that the model has
    there. New weights are He's, drawn from torch's generator: what a network computed is lost, as ReLU within a
    convolution has no like.

    Args:
        model: not changed. Masked layers come out plain, as from `materialize`.
        explain: also return what was done to each convolution, and why nothing was: those with groups, with a side of
            1, with hooks or a shared weight, and those whose pair would have no fewer weights, are left alone.

    Returns:
        The model; with explain, (model, report).

    Source: Alvarez, Petersson, "DecomposeMe: Simplifying ConvNets for End-to-End Learning", 2016.
    """
    model = materialize(model)
    pairs, rows = dict[nn.Module, nn.Module](), []
    for name, layer, reason in layers(model):
        if not isinstance(layer, nn.Conv2d):
            continue
        reason = reason or _reason_not_to_pair(layer) or reason_not_to_replace(model, layer)
        if reason is None:
            pairs[layer] = _pair(layer)
        before = layer.weight.numel()
        rows.append(DecomposedLayer(name, before, before if reason else _weights(layer), reason or ""))
    result = replace_layers(model, pairs)
    return (result, DecomposeReport(tuple(rows))) if explain else result


def _reason_not_to_pair(layer: nn.Conv2d) -> str | None:
    if layer.groups > 1:
        return "has groups"
    if min(layer.kernel_size) == 1:
        return "has a side of 1"
    before, after = layer.weight.numel(), _weights(layer)
    return f"a pair needs {after:,} weights instead of {before:,}" if after >= before else None


def _weights(layer: nn.Conv2d) -> int:
    """Of the pair."""
    (h, w), c, n = layer.kernel_size, layer.in_channels, layer.out_channels
    return n * (c * h + n * w)


def _pair(layer: nn.Conv2d) -> nn.Sequential:
    n, bias = layer.out_channels, layer.bias is not None
    vertical, horizontal = _along(layer, 0, layer.in_channels, True), _along(layer, 1, n, bias)
    return nn.Sequential(vertical, nn.ReLU(), horizontal).train(layer.training)


def _along(layer: nn.Conv2d, side: int, channels: int, bias: bool) -> nn.Conv2d:
    """As wide as the layer, with its numbers for one side: 0, vertical; 1, horizontal."""

    def of(value: Any, other: int) -> Any:
        if isinstance(value, str):  # padding may be a word
            return value
        return (value[0], other) if side == 0 else (other, value[1])

    conv = nn.Conv2d(
        channels,
        layer.out_channels,
        of(layer.kernel_size, 1),
        of(layer.stride, 1),
        of(layer.padding, 0),
        of(layer.dilation, 1),
        bias=bias,
        padding_mode=layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    nn.init.kaiming_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv.requires_grad_(layer.weight.requires_grad)
