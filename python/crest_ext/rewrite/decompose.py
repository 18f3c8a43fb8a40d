"""Convolutions as vertical and horizontal ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from crest_ext.nn.layers import layers
from crest_ext.nn.replace import Model, reason_not_to_replace, replace_layers
from crest_ext.rewrite.materialize import materialize


def decompose(model: Model) -> Model:
    """A copy whose convolutions are pairs of one-dimensional ones, with ReLU between: to train from scratch.

    A Conv2d with n filters (c, kh, kw) becomes a Conv2d with n filters (c, kh, 1) and a bias, ReLU, and a Conv2d with n
    filters (n, 1, kw) and the layer's bias, as an nn.Sequential in its place, which keeps its stride, padding and
    dilation: n (c kh + n kw) weights in place of n c kh kw. The ReLU after the pair is the one that the model has
    there. New weights are He's, drawn from torch's generator: what a network computed is lost, as ReLU within a
    convolution has no like.

    Args:
        model: not changed. Masked layers come out plain, as from `materialize`.

    Returns:
        The model. Convolutions with groups, with a side of 1, with hooks or a shared weight, and those whose pair would
        have no fewer weights, are left alone.

    Source: Alvarez, Petersson, "DecomposeMe: Simplifying ConvNets for End-to-End Learning", 2016.
    """
    model = materialize(model)
    pairs = dict[nn.Module, nn.Module]()
    for _, layer, reason in layers(model):
        if (
            reason is None
            and isinstance(layer, nn.Conv2d)
            and _shrinks(layer)
            and not reason_not_to_replace(model, layer)
        ):
            pairs[layer] = _pair(layer)
    return replace_layers(model, pairs)


def _shrinks(layer: nn.Conv2d) -> bool:
    (h, w), c, n = layer.kernel_size, layer.in_channels, layer.out_channels
    return layer.groups == 1 and min(h, w) > 1 and n * (c * h + n * w) < layer.weight.numel()


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
