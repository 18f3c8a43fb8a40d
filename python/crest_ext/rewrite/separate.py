"""Convolutions as depthwise and pointwise ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from crest_ext.nn import DepthwiseConv2d
from crest_ext.nn.layers import layers
from crest_ext.nn.replace import Model, reason_not_to_replace, replace_layers
from crest_ext.rewrite.materialize import materialize


@dataclass(frozen=True)
class SeparatedLayer:
    """What was made of one convolution."""

    name: str
    before: int  # weights, biases not counted
    after: int
    error: float  # Frobenius norm of the change over that of the weight
    note: str  # why it is left as it is, or ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.name}: left as it is: {self.note}"
        return f"{self.name}: {self.before:,} -> {self.after:,} weights, relative error {self.error:.2g}"


@dataclass(frozen=True)
class SeparateReport:
    """What `separate` did, convolution by convolution."""

    layers: tuple[SeparatedLayer, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))


def separate(model: Model) -> tuple[Model, SeparateReport]:
    """A copy whose convolutions are depthwise separable, as MobileNet's: to train on from.

    A Conv2d with n filters (c, kh, kw) becomes a DepthwiseConv2d of c filters, which keeps its stride, padding and
    dilation, and a 1x1 convolution to n with its bias, as an nn.Sequential in its place. Of all such pairs it is the
    one nearest to the weight in the Frobenius norm: for each input channel the best fit of rank 1 to its (n, kh kw)
    slice, with the singular value shared out evenly. What a trained network computes changes much all the same (the
    report says how much of each weight is lost), so the copy has to be trained on.

    Args:
        model: not changed. Masked layers come out plain, as from `materialize`.

    Returns:
        The model, and what was done to each convolution. Those of 1x1 and those with groups are left alone, and those
        whose pair would have no fewer weights.

    Raises:
        ValueError: a weight that is not finite.

    Work: a singular value decomposition for each input channel.
    Source: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017, section 3.1.
    """
    model = materialize(model)
    pairs, rows = dict[nn.Module, nn.Module](), []
    for name, layer, reason in layers(model):
        if not isinstance(layer, nn.Conv2d):
            continue
        weight = layer.weight
        after = layer.in_channels * (layer.out_channels + weight[0, 0].numel())
        if reason is None and layer.groups > 1:
            reason = "has groups"
        elif reason is None and weight[0, 0].numel() == 1:
            reason = "is 1x1"
        elif reason is None and after >= weight.numel():
            reason = f"a pair needs {after:,} weights instead of {weight.numel():,}"
        reason = reason or reason_not_to_replace(model, layer)
        error = 0.0
        if reason is None:
            if not weight.isfinite().all():
                raise ValueError(f"separate: weight of layer {name!r} must be finite")
            filters, mixing, error = _nearest(weight.detach())
            pairs[layer] = _pair(layer, filters, mixing)
        rows.append(SeparatedLayer(name, weight.numel(), weight.numel() if reason else after, error, reason or ""))
    return replace_layers(model, pairs), SeparateReport(tuple(rows))


def _nearest(weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Filters (c, kh kw) and mixing (n, c) whose products are nearest to weight (n, c, kh, kw), and the error."""
    slices = weight.flatten(2).transpose(0, 1)
    slices = slices if slices.dtype == torch.float64 else slices.float()
    u, s, vh = torch.linalg.svd(slices, full_matrices=False)
    root = s[:, :1].sqrt()
    error = (s[:, 1:].norm() / s.norm()).item() if s.any() else 0.0
    return vh[:, 0] * root, (u[:, :, 0] * root).t(), error


def _pair(layer: nn.Conv2d, filters: Tensor, mixing: Tensor) -> nn.Sequential:
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    c, bias = layer.in_channels, layer.bias is not None
    depthwise: nn.Conv2d = nn.Conv2d(
        c,
        c,
        cast("tuple[int, int]", layer.kernel_size),
        cast("tuple[int, int]", layer.stride),
        cast("tuple[int, int]", layer.padding),
        cast("tuple[int, int]", layer.dilation),
        c,
        bias=False,
        padding_mode=layer.padding_mode,
        **like,
    )
    if layer.padding_mode == "zeros":
        depthwise = DepthwiseConv2d.from_conv2d(depthwise)
    pointwise = nn.Conv2d(c, layer.out_channels, 1, bias=bias, **like)
    with torch.no_grad():
        for module, values in ((depthwise, filters), (pointwise, mixing)):
            module.weight.copy_(values.reshape(module.weight.shape))
            module.weight.requires_grad_(layer.weight.requires_grad)
    if bias:
        pointwise.bias = layer.bias
    return nn.Sequential(depthwise, pointwise).train(layer.training)
