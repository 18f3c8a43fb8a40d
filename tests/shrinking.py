"""Networks to shrink, and what must hold of each that is."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crest_ext import shrink
from crest_ext.container import load_model, save_model
from crest_ext.nn import ZeroConv2d
from crest_ext.rewrite.shrink import ShrunkLayer

CUT = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def settle(model: nn.Module) -> nn.Module:
    """Biases, and BatchNorm statistics as if it had been trained."""
    for module in model.modules():
        if isinstance(module, CUT) and module.bias is not None:
            nn.init.normal_(module.bias)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model


def by_outputs(layer: Any) -> Tensor:
    """Its weight, with outputs along the first dimension and inputs along the second."""
    weight: Tensor = layer.weight
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def zero_(layer: Any, outs: Any = (), ins: Any = (), bias: float | None = None) -> None:
    """Drop outputs and inputs of a layer, and give the dropped outputs this bias."""
    with torch.no_grad():
        weight = by_outputs(layer)
        weight[list(outs)] = 0
        weight[:, list(ins)] = 0
        if bias is not None:
            layer.bias[list(outs)] = bias


def run(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        y: Tensor = copy.deepcopy(model).eval()(*(x if isinstance(x, tuple) else (x,)))
    return y


def layers_alone(model: nn.Module) -> bool:
    """Whether it is one layer itself, which no file can replace."""
    return isinstance(model, (nn.Linear, nn.Conv2d))


def read_again(small: nn.Module, model: nn.Module) -> nn.Module:
    """What a file of `small` makes of a network like `model` that has other values."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(small, Path(folder) / "small.crest", of=model)
        again = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.fill_(float("nan"))
        load_model(again, Path(folder) / "small.crest")
    return again


def check(model: nn.Module, x: Any, **options: Any) -> tuple[nn.Module, dict[str, ShrunkLayer]]:
    """The smaller model and its report, once it is sure to be right."""
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    small, report = shrink(model, x, explain=True, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in small.modules()] == modes
    expected = run(model, x)
    torch.testing.assert_close(run(small, x), expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters()) + sum(
        len(by_outputs(m)) for m in model.modules() if isinstance(m, CUT) and m.bias is None
    )
    if not layers_alone(model):
        again = read_again(small, model)
        assert [module.training for module in again.modules()] == modes
        assert torch.equal(run(again, x), run(small, x))
    for row in report.layers:
        layer: Any = small.get_submodule(row.name)
        if not row.after:
            assert type(layer) is ZeroConv2d
            continue
        fresh = copy.deepcopy(layer)
        if isinstance(layer, nn.Linear):
            fresh = nn.Linear(layer.in_features, layer.out_features)
        elif type(layer) is nn.ConvTranspose2d:
            sizes: Any = layer.in_channels, layer.out_channels, layer.kernel_size
            fresh = nn.ConvTranspose2d(*sizes, groups=layer.groups)
        elif type(layer) is nn.Conv2d:
            fresh = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups)  # type: ignore[arg-type]
        assert row.note or row.before != row.after
        if not isinstance(layer, CUT):
            assert row.before == row.after
            continue
        assert tuple(fresh.weight.shape) == tuple(layer.weight.shape) == row.after
        assert tuple(model.get_submodule(row.name).weight.shape) == row.before  # type: ignore[union-attr,arg-type]
    return small, {row.name: row for row in report.layers}


def shapes(report: dict[str, ShrunkLayer]) -> dict[str, tuple[int, ...]]:
    return {name: row.after[:2] for name, row in report.items()}


def conv_bn(channels_in: int, channels: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
