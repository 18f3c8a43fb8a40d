from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext import recalibrate, separate
from crest_ext.models import create_model
from crest_ext.nn import DepthwiseConv2d, MaskedConv2d


def separable_(conv: nn.Conv2d) -> None:
    """Make the weight one that a pair can compute."""
    filters, mixing = torch.randn(1, conv.in_channels, *conv.kernel_size), torch.randn(conv.out_channels, 1, 1, 1)
    conv.weight.data.copy_(filters * mixing * torch.randn(1, conv.in_channels, 1, 1))


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "stride and padding": {"kernel_size": 3, "stride": 2, "padding": 1},
    "one side": {"kernel_size": (1, 5), "padding": (0, 2), "bias": False},
    "same and dilation": {"kernel_size": 5, "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_separable_weight_keeps_its_output(name: str) -> None:
    conv = nn.Conv2d(6, 9, **CONVOLUTIONS[name])
    separable_(conv)
    model = nn.Sequential(conv, nn.ReLU()).eval()
    before = copy.deepcopy(model.state_dict())
    small, report = separate(model)
    x = torch.randn(2, 6, 13, 14)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    (row,) = report.layers
    weights = [p for n, p in small.named_parameters() if "weight" in n]
    assert row.after == sum(p.numel() for p in weights) < row.before == conv.weight.numel()
    assert row.error < 1e-5
    assert type(small[0][0]) is (nn.Conv2d if name == "reflect" else DepthwiseConv2d)
    assert not any(m.training for m in small.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def product(pair: nn.Module) -> Tensor:
    filters, mixing = (m.weight.detach() for m in pair.children())
    assert isinstance(filters, Tensor) and isinstance(mixing, Tensor)
    return filters.transpose(0, 1) * mixing


def test_the_pair_is_the_nearest() -> None:
    """To each input channel's slice, as its own decomposition says, and to no less than any step away from it."""
    conv = nn.Conv2d(4, 7, 3)
    small, report = separate(conv)
    weight, got = conv.weight.detach(), product(small)
    for c in range(4):
        u, s, vh = torch.linalg.svd(weight[:, c].flatten(1))
        torch.testing.assert_close(got[:, c].flatten(1), s[0] * u[:, :1] @ vh[:1], rtol=1e-4, atol=1e-6)
    error = (got - weight).norm() / weight.norm()
    assert report.layers[0].error == pytest.approx(error.item(), rel=1e-4)
    assert str(report) == f": 252 -> 64 weights, relative error {error:.2g}"
    for p in small.parameters():
        p.data += 1e-3 * torch.randn_like(p)
    assert (product(small) - weight).norm() / weight.norm() > error


def test_what_is_left_alone() -> None:
    shared, tied = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    tied.weight = shared.weight
    hooked = nn.Conv2d(3, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "one": nn.Conv2d(4, 4, 1),
            "thin": nn.Conv2d(4, 1, 3),
            "shared": shared,
            "tied": tied,
            "hooked": hooked,
            "linear": nn.Linear(4, 4),
        }
    )
    small, report = separate(model)
    notes = {row.name: row.note for row in report.layers}
    assert notes == {
        "grouped": "has groups",
        "one": "is 1x1",
        "thin": "a pair needs 40 weights instead of 36",
        "shared": "shares its weight",
        "tied": "shares its weight",
        "hooked": "has hooks",
    }
    assert all(row.before == row.after and row.error == 0 for row in report.layers)
    assert str(report).startswith("grouped: left as it is: has groups\n")
    assert not any(isinstance(m, DepthwiseConv2d) for m in small.modules())


def test_masked_and_zero_layers() -> None:
    conv = MaskedConv2d(3, 8, 3)
    conv.mask[:, 0] = False
    small, report = separate(conv)
    assert not product(small)[:, 0].any()
    conv.mask[:] = False
    small, report = separate(conv)
    assert report.layers[0].error == 0
    assert not product(small).any()


def test_a_network_trains_on() -> None:
    model = create_model("resnet20").train()
    small, report = separate(model)
    assert sum(row.after for row in report.layers) < 0.3 * sum(row.before for row in report.layers)
    assert all(0 < row.error < 1 for row in report.layers if not row.note)
    x = torch.randn(8, 3, 32, 32)
    recalibrate(small, [x])
    small.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_refuses() -> None:
    conv = nn.Conv2d(3, 8, 3)
    conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^separate: weight of layer '' must be finite$"):
        separate(conv)
