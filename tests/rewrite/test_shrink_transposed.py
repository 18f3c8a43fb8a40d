"""Transposed convolutions, cut by `shrink`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shrinking import check, conv_bn, settle, shapes, zero_

pytestmark = pytest.mark.usefixtures("one_thread")


class UNet(nn.Module):
    """Down, up again, and what was there before beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = conv_bn(3, 8, padding=1), conv_bn(8, 12, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 3, 2, 1, output_padding=1)
        self.last = nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.last(torch.cat([self.up(self.down(x)), x], 1))
        return y


def test_transposed_convolutions() -> None:
    model: Any = settle(UNet()).eval()
    x = torch.randn(2, 3, 8, 8)
    zero_(model.down[0], outs=range(3))
    model.down[1].bias.data[:3] = -100  # ReLU makes it 0
    model.down[1].running_mean[3] = 0
    zero_(model.down[0], outs=[3])
    model.down[1].bias.data[3] = 1  # a constant, but not 0
    zero_(model.up, ins=[4, 5], outs=[0])
    zero_(model.last, ins=[1, 2, 13])
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    for layer, ins, outs in ((model.up, [4, 5], [0]), (model.last, [1, 2, 13], []), (model.down[0], [], range(4))):
        zero_(layer, ins=ins, outs=outs)
    _, report = check(model, x, optimizer=optimizer)
    assert shapes(report) == {"first.0": (8, 3), "down.0": (7, 8), "up": (7, 3), "last": (2, 11)}
    assert report["down.0"].note == "1 of 12 outputs stay: a ConvTranspose2d follows their constant"
    for parameter in optimizer.param_groups[0]["params"]:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    model.up = nn.ConvTranspose2d(12, 6, 3, 2, 1, output_padding=1, groups=2)
    assert check(model, x)[1]["up"].note == "is a ConvTranspose2d"
    assert check(settle(UNet()), x, ignored_layers="up")[1]["up"].note == "is ignored"
