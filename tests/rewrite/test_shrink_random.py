"""Networks of layers at random, with zeros at random, cut by `shrink`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from shrinking import CUT, by_outputs, check, settle, zero_

pytestmark = pytest.mark.usefixtures("one_thread")


class RandomNet(nn.Module):
    """Layers drawn one after the other, on 8x8 images."""

    def __init__(self, kinds: list[tuple[str, int]]) -> None:
        super().__init__()
        self.kinds, self.steps, channels = kinds, nn.ModuleList(), 4
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        for kind, size in kinds:
            step: nn.Module = nn.Identity()
            if kind in ("conv", "valid"):
                step = nn.Conv2d(channels, 4 * size, 3, padding=int(kind == "conv"), bias=size > 1)
                channels = 4 * size
            elif kind == "grouped":
                step = nn.Conv2d(channels, 4 * size, 3, padding=1, groups=2)
                channels = 4 * size
            elif kind == "turned":
                step = nn.ConvTranspose2d(channels, 4 * size, 3, padding=1, bias=size > 1)
                channels = 4 * size
            elif kind == "depthwise":
                step = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            elif kind == "residual":
                step = nn.Sequential(
                    nn.Conv2d(channels, 4 * size, 1), nn.ReLU(), nn.Conv2d(4 * size, channels, 3, padding=1)
                )
            elif kind == "cat":
                step, channels = nn.Conv2d(channels, 4 * size, 1), channels + 4 * size
            elif kind == "norm":
                step = nn.BatchNorm2d(channels)
            elif kind == "activation":
                step = (nn.ReLU(inplace=True), nn.Sigmoid(), nn.ReLU6())[size - 1]
            self.steps.append(step)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, _), step in zip(self.kinds, self.steps, strict=True):
            y = step(x)
            x = y + x if kind == "residual" else torch.cat([x, y], 1) if kind == "cat" else y
        return self.head(F.max_pool2d(x, 2))


KINDS = ("conv", "valid", "grouped", "turned", "depthwise", "residual", "cat", "norm", "activation")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 3)), max_size=6).filter(
        lambda kinds: [kind for kind, _ in kinds].count("valid") < 3
    ),
    st.integers(0, 2**31),
    st.sampled_from([None, 1, 2, 4]),
    st.booleans(),
)
def test_random_zeros_in_random_networks(
    kinds: list[tuple[str, int]], seed: int, round_to: int | None, depth: bool
) -> None:
    torch.manual_seed(seed)
    model: Any = RandomNet(kinds)
    x = torch.randn(2, 2, 8, 8)
    model.eval()(x)  # its last layer takes its size from the input
    settle(model)
    for module in model.modules():
        if isinstance(module, CUT):
            outs, ins = by_outputs(module).shape[:2]
            zero_(module, outs=torch.rand(outs).lt(0.4).nonzero()[:, 0].tolist())
            zero_(module, ins=torch.rand(ins).lt(0.3).nonzero()[:, 0].tolist())
            if module.bias is not None:
                module.bias.data *= torch.rand(len(module.bias)) < 0.5
    _, report = check(model, x, round_to=round_to, depth=depth)
    if round_to:
        turned = {name for name, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d)}
        outs = [(row.before[at], row.after[at]) for row in report.values() if row.after for at in [row.name in turned]]
        assert all(after in (before, after // round_to * round_to) for before, after in outs)
