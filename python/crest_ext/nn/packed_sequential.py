"""Layers in a row, of which those on packed weights run in one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from torch import Tensor, nn

from crest_ext.nn.quick import MaxPool2d
from crest_ext.nn.sparse import SparseLinear
from crest_ext.nn.steps import CONVS, opens, steps_of, tensors_of
from crest_ext.ops import packed_sequential


class Run(NamedTuple):
    """Layers from `begin` to `end`, and how `packed_sequential` computes them; without steps, they are called."""

    begin: int
    end: int
    steps: list[int]
    layers: list[nn.Module]  # all within
    tensors: list[tuple[nn.Module, str, str]]  # their places: one of `layers`, a dict of it, and a key
    saved: int  # calls


class PackedSequential(nn.Sequential):
    """torch.nn.Sequential for inference, in which neighbours that `packed_sequential` knows are one call of it.

    These are SparseConv2d, DepthwiseConv2d, SeparableConv2d, StemConv2d, SparseLinear, nn.quick.MaxPool2d, nn.Flatten,
    nn.ReLU, Shortcut, ChannelMean, nn.AdaptiveAvgPool2d of 1, nn.Linear and nn.Identity, where two or more of the first
    six follow each other, and Residual, of such layers. Any other module is called as it is.
    Names, and so a state_dict, are those of an nn.Sequential of the same modules. The modules are not to be replaced or
    set otherwise later.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.runs = list(_runs(list(layers.values())))

    @staticmethod
    def of(layers: Mapping[str, nn.Module]) -> PackedSequential | None:
        """None where no call is saved."""
        made = PackedSequential(layers)
        return made if made.saved else None

    @property
    def saved(self) -> int:
        """Calls of ops fewer than of the modules."""
        return sum(run.saved for run in self.runs)

    def forward(self, input: Tensor) -> Tensor:
        x = input
        for begin, end, steps, within, places, _ in self.runs:
            if not steps or any([layer._forward_hooks or layer._forward_pre_hooks for layer in within]):  # noqa: C419 (faster)
                for layer in islice(self, begin, end):
                    x = layer(x)
            else:
                x = packed_sequential(x, [layer.__dict__[kind][name] for layer, kind, name in places], steps)
        return x


def _runs(layers: list[nn.Module]) -> Iterator[Run]:
    begin = 0
    while begin < len(layers):
        run = Run(begin, begin, [], [], [], -1)
        while run.end < len(layers) and (run.end > begin or opens(layers[run.end])):
            steps = steps_of(layers[run.end])
            if steps is None:
                break
            ops = 0
            for layer, numbers in steps:
                ops += isinstance(layer, (*CONVS, SparseLinear, MaxPool2d))
                run.steps.extend(numbers)
                if layer is not None:
                    run.tensors.extend((layer, kind, name) for kind, name in tensors_of(layer))
                    run.layers.append(layer)
            run = run._replace(end=run.end + 1, saved=run.saved + ops)
        begin = max(run.end, begin + 1)
        yield run if run.saved > 0 else Run(run.begin, begin, [], [], [], 0)
