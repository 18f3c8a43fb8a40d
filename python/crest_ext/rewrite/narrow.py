"""Layers without the channels that go: the part of `shrink` that cuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crest_ext.nn import ZeroConv2d
from crest_ext.ops.depthwise_conv2d import is_channels_last
from crest_ext.rewrite.channels import Use
from crest_ext.rewrite.hand_over import Take


def narrow(use: Use, live: Tensor) -> dict[str, Take]:
    """Cut the layer, and fold the known inputs that go into its bias. Returns how its parameters were cut."""
    layer = use.layer
    ins, outs = use.stay(live)
    groups = outs.any(1)
    rows = outs.flatten().nonzero()  # (n', 1)
    columns = ins[groups].nonzero()[:, 1].view(int(groups.sum()), -1)  # (g', c'), within a group
    columns = columns.repeat_interleave(len(rows) // len(columns), 0) if len(columns) > 1 else columns

    def take_weight(t: Tensor) -> Tensor:
        if isinstance(layer, nn.ConvTranspose2d):  # (inputs, outputs, kh, kw)
            return t[columns.t().to(t.device), rows.t().to(t.device)]
        return t[rows.to(t.device), columns.to(t.device)]

    def take(t: Tensor) -> Tensor:
        return t[rows[:, 0].to(t.device)]

    _fold(use, ins.flatten() | use.value.isnan())
    _replace(layer, {"weight": take_weight, "bias": take})
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        layer.groups = int(groups.sum())
        layer.out_channels, layer.in_channels = len(rows), int(ins.sum())
    return {"weight": take_weight, "bias": take}


def narrow_by_channel(module: nn.Module, stay: Tensor) -> dict[str, Take]:
    def take(t: Tensor) -> Tensor:
        return t[stay.to(t.device)]

    _replace(module, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), take))
    setattr(module, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", int(stay.sum()))
    return {"weight": take, "bias": take}


def empty(use: Use, live: Tensor) -> tuple[ZeroConv2d, dict[str, Take]]:
    """What stands for a convolution of which only constants are read, and how its bias was cut."""
    assert isinstance(use.layer, nn.Conv2d)
    stay = live[use.outs]

    def take(t: Tensor) -> Tensor:
        return t[stay.to(t.device)]

    _fold(use, use.value.isnan())
    bias = take(use.layer.weight.new_zeros(len(stay)) if use.layer.bias is None else use.layer.bias.detach())
    return ZeroConv2d.from_conv2d(use.layer, bias), {"bias": take}


def _fold(use: Use, left: Tensor) -> None:
    """Add what the inputs that are one value give, but those of `left`, to the layer's bias."""
    layer, weight = use.layer, use.layer.weight.detach()
    constants = torch.where(left, 0, use.value)
    if constants.any():
        sums = weight.double().flatten(2).sum(2) if weight.dim() > 2 else weight.double()
        folded = sums.view(use.nonzero.shape) @ constants.to(sums).view(use.groups, -1, 1)
        if layer.bias is None:
            layer.bias = nn.Parameter(weight.new_zeros(len(weight)), layer.weight.requires_grad)
        layer.bias.data = (layer.bias.detach().double() + folded.flatten()).to(weight.dtype)


def _replace(module: nn.Module, takes: dict[str, Take]) -> None:
    for name, take in takes.items():
        old = getattr(module, name, None)
        if isinstance(old, nn.Parameter):
            format_ = torch.channels_last if is_channels_last(old) else torch.contiguous_format
            values = take(old.detach()).contiguous(memory_format=format_)
            setattr(module, name, nn.Parameter(values, old.requires_grad))
        elif old is not None:
            setattr(module, name, take(old))
