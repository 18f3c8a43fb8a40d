"""Shallow students with a budget of parameters, and the deep networks that teach them, for 32x32 images.

Source: Urban et al., "Do Deep Convolutional Nets Really Need to be Deep and Convolutional?", ICLR 2017, tables 1, 2
and appendix.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn

SIDE = 32
# By number of convolutions: the side of the max-pool after each (0: none), and each one's bounds of filters.
POOLS = {0: (), 1: (3,), 2: (2, 2), 3: (2, 2, 2), 4: (2, 0, 2, 2)}
FILTERS = {
    0: (),
    1: ((50, 500),),
    2: ((50, 500), (100, 400)),
    3: ((50, 500), (100, 300), (100, 300)),
    4: ((50, 300), (50, 300), (100, 300), (100, 300)),
}
HIDDEN = (200, 2000)  # bounds of the ReLU layer after a bottleneck
LARGEST = 1e15  # budget: its bytes are still 64-bit numbers, and no memory holds them


class Shallow(nn.Sequential):
    """A student: 5x5 convolutions, then one ReLU layer; or a perceptron. x: (n, 3, 32, 32), each image standardised.

    One width is free, and becomes what brings the number of parameters, biases among them, nearest to the budget: the
    ReLU layer with two to four convolutions; with one, the linear bottleneck before the ReLU layer, which has no bias;
    without any, the widest layer, to which `ratios` ties the others. A perceptron of one ReLU layer has the bottleneck
    as well.

    Args:
        conv_layers: 0 to 4.
        params: the budget, at most 1e15; the paper's are 1e6, 3.16e6, 1e7 and 3.16e7.
        filters: of each convolution, within the paper's bounds (FILTERS). Default: the lower bounds times
            sqrt(params / 1e6), at most the upper ones.
        hidden: units of the ReLU layer of one convolution, 200 to 2000; default as that of filters.
        hidden_layers: ReLU layers of a perceptron, 1 to 5 in the paper.
        ratios: relative widths of a perceptron's layers, first to last, the bottleneck among them; default: equal.
        classes: outputs, at least one.
        input_scale: factor of x, 0.8 to 1.25 in the paper's search.
        init_scale: factor of the initial weights, which are Glorot and Bengio's; 0.4 to 2 in the paper's search.

    Raises:
        ValueError: an argument breaks a bound or does not belong to this kind of network, or even one unit of the free
            width exceeds the budget.
    """

    input_shape = (3, SIDE, SIDE)

    def __init__(
        self,
        conv_layers: int = 1,
        params: float = 1e6,
        *,
        filters: Sequence[int] | None = None,
        hidden: int | None = None,
        hidden_layers: int = 1,
        ratios: Sequence[float] | None = None,
        classes: int = 10,
        input_scale: float = 1.0,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _require(conv_layers in POOLS, "conv_layers", "be 0 to 4", conv_layers)
        _require(0 < params <= LARGEST, "params", f"be > 0 and at most {LARGEST:g}", params)
        _require(classes >= 1, "classes", "be at least 1", classes)
        _require(hidden is None or conv_layers == 1, "hidden", "be left out unless conv_layers is 1", hidden)
        _require(ratios is None or conv_layers == 0, "ratios", "be left out unless conv_layers is 0", ratios)
        _require(hidden_layers >= 1, "hidden_layers", "be at least 1", hidden_layers)
        _require(hidden_layers == 1 or conv_layers == 0, "hidden_layers", "be 1 with convolutions", hidden_layers)
        _require(math.isfinite(input_scale) and input_scale > 0, "input_scale", "be finite and > 0", input_scale)
        _require(math.isfinite(init_scale) and init_scale > 0, "init_scale", "be finite and > 0", init_scale)
        self.input_scale = input_scale
        bottleneck = conv_layers == 1 or (conv_layers == 0 and hidden_layers == 1)

        filters = _within("filters", filters, FILTERS[conv_layers], params)
        side = SIDE
        for i, (before, channels, pool) in enumerate(zip((3, *filters), filters, POOLS[conv_layers], strict=False), 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, channels, 5, padding=2))
            self.add_module(f"relu{i}", nn.ReLU())
            if pool:
                self.add_module(f"pool{i}", nn.MaxPool2d(pool))
                side //= pool
        self.flatten = nn.Flatten()

        if conv_layers == 0:
            layers = hidden_layers + bottleneck
            shares = tuple(ratios) if ratios is not None else (1.0,) * layers
            _require(len(shares) == layers, "ratios", f"be one a layer, {layers}", shares)
            _require(all(0 < r < math.inf for r in shares), "ratios", "be finite numbers > 0", shares)
        units = _within("hidden", None if hidden is None else [hidden], [HIDDEN], params)

        def widths(free: int) -> tuple[int, ...]:
            if conv_layers == 0:
                return tuple(max(1, round(free * share / max(shares))) for share in shares)
            return (free, *units) if bottleneck else (free,)

        convolutions = sum(p.numel() for p in self.parameters())
        flat = (filters[-1] if filters else 3) * side**2

        def count(free: int) -> int:
            sizes = (flat, *widths(free), classes)
            biases = sum(sizes[1:]) - (free if conv_layers else sizes[1]) * bottleneck
            return convolutions + sum(a * b for a, b in pairwise(sizes)) + biases

        if count(1) > params:
            what = f"filters {filters}" if filters else f"{hidden_layers} hidden layers"
            raise ValueError(f"Shallow: params must be at least {count(1):,} with {what}, got {params:,.0f}")
        free = bisect_right(range(1, int(params) + 1), params, key=count)  # the last one within the budget
        free += count(free + 1) - params < params - count(free)

        sizes = (flat, *widths(free))
        for i, (before, size) in enumerate(pairwise(sizes), 1 - bottleneck):
            if i == 0:
                self.bottleneck = nn.Linear(before, size, bias=False)
            else:
                self.add_module(f"fc{i}", nn.Linear(before, size))
                self.add_module(f"fc_relu{i}", nn.ReLU())
        self.output = nn.Linear(sizes[-1], classes)
        _glorot_(self, init_scale)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.input_scale == 1 else self.input_scale * x)


class Teacher(nn.Sequential):
    """3x3 convolutions in groups of two, two and four, each group pooled, and two ReLU layers; dropout after each
    pool and each ReLU layer. x: (n, 3, 32, 32), each image standardised. Defaults: the paper's best, 92.78 %.

    Args:
        filters: of each group: 32 to 96, 64 to 192, 128 to 384.
        units: of each ReLU layer: 512 to 1536.
        dropout: DOc1, DOc2, DOc3, DOf1, DOf2; default: the middles of the paper's ranges.
        classes: outputs, at least one.
        init_scale: as that of Shallow; 0.8 to 1.35 in the paper's search.

    Raises:
        ValueError: an argument breaks a bound.
    """

    input_shape = (3, SIDE, SIDE)

    def __init__(
        self,
        filters: Sequence[int] = (76, 126, 148),
        units: int = 1200,
        *,
        dropout: Sequence[float] = (0.2, 0.3, 0.37, 0.425, 0.425),
        classes: int = 10,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _require(math.isfinite(init_scale) and init_scale > 0, "init_scale", "be finite and > 0", init_scale, "Teacher")
        _require(len(dropout) == 5, "dropout", "be five numbers", dropout, "Teacher")
        _require(all(0 <= p < 1 for p in dropout), "dropout", "be in [0, 1)", dropout, "Teacher")
        _require(classes >= 1, "classes", "be at least 1", classes, "Teacher")
        filters = _within("filters", filters, [(32, 96), (64, 192), (128, 384)], 1e6, "Teacher")
        _within("units", [units], [(512, 1536)], 1e6, "Teacher")
        before, layer = 3, 1
        for group, (channels, depth) in enumerate(zip(filters, (2, 2, 4), strict=True), 1):
            for _ in range(depth):
                self.add_module(f"conv{layer}", nn.Conv2d(before, channels, 3, padding=1))
                self.add_module(f"relu{layer}", nn.ReLU())
                before, layer = channels, layer + 1
            self.add_module(f"pool{group}", nn.MaxPool2d(2))
            self.add_module(f"dropout{group}", nn.Dropout(dropout[group - 1]))
        self.flatten = nn.Flatten()
        before *= (SIDE // 8) ** 2
        for i in (1, 2):
            self.add_module(f"fc{i}", nn.Linear(before, units))
            self.add_module(f"fc_relu{i}", nn.ReLU())
            self.add_module(f"fc_dropout{i}", nn.Dropout(dropout[2 + i]))
            before = units
        self.output = nn.Linear(before, classes)
        _glorot_(self, init_scale)


def _require(holds: bool, argument: str, rule: str, value: object, who: str = "Shallow") -> None:
    if not holds:
        raise ValueError(f"{who}: {argument} must {rule}, got {value!r}")


def _within(
    argument: str,
    sizes: Sequence[int] | None,
    bounds: Sequence[tuple[int, int]],
    params: float,
    who: str = "Shallow",
) -> tuple[int, ...]:
    """The sizes, or those that go with a budget; each within its bounds."""
    if sizes is None:
        return tuple(min(high, max(low, round(low * math.sqrt(params / 1e6)))) for low, high in bounds)
    _require(all(isinstance(s, Integral) for s in sizes), argument, "be whole numbers", tuple(sizes), who)
    fits = len(sizes) == len(bounds) and all(low <= s <= high for s, (low, high) in zip(sizes, bounds, strict=True))
    ranges = ", ".join(f"{low} to {high}" for low, high in bounds) or "left out"
    _require(fits, argument, f"be {ranges}", tuple(sizes), who)
    return tuple(sizes)


@torch.no_grad()
def _glorot_(model: nn.Module, scale: float) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight, gain=scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
