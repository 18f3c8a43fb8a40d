"""Layers in a row, of which those on packed weights run in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from crest_ext.nn.packed import Packed
from crest_ext.nn.quick import MaxPool2d
from crest_ext.nn.sparse import SparseConv2d, SparseLinear
from crest_ext.ops import packed_sequential
from crest_ext.ops.depthwise_conv2d import pair
from crest_ext.reference import FLATTEN, MAX_POOL2D, RELU, SPARSE_CONV2D, SPARSE_LINEAR

OPENING = (SparseConv2d, SparseLinear, nn.Flatten)  # that take what they take as modules, and nothing more


class Run(NamedTuple):
    """Layers from `begin` to `end`, and how `packed_sequential` computes them; without steps, they are called."""

    begin: int
    end: int
    steps: list[int]
    tensors: list[tuple[int, str]]  # their places: a layer, counted from `begin`, and the name of a buffer


class PackedSequential(nn.Sequential):
    """torch.nn.Sequential for inference, in which neighbours that `packed_sequential` knows are one call of it.

    These are SparseConv2d, SparseLinear, nn.quick.MaxPool2d, nn.Flatten, nn.ReLU and nn.Identity, where two or more
    of the first three follow each other. Any other module is called as it is. Names, and so a state_dict, are those of
    an nn.Sequential of the same modules. The modules are not to be replaced or set otherwise later.
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
        return made if any(run.steps for run in made.runs) else None

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self._modules.values())
        for begin, end, steps, places in self.runs:
            some = layers[begin:end]
            if not steps or any([layer._forward_hooks or layer._forward_pre_hooks for layer in some]):  # noqa: C419 (faster)
                for layer in some:
                    x = layer(x)
            else:
                x = packed_sequential(x, [some[i]._buffers[name] for i, name in places], steps)
        return x


def _runs(layers: list[nn.Module]) -> Iterator[Run]:
    begin = 0
    while begin < len(layers):
        end, ops, steps, places = begin, 0, [], []
        while end < len(layers) and (end > begin or type(layers[end]) in OPENING):
            layer = layers[end]
            step = _step(layer)
            if step is None:
                break
            steps += step
            if isinstance(layer, Packed):
                names = (*layer.tensors, "bias") if layer.bias is not None else layer.tensors
                places += [(end - begin, name) for name in names]
            ops += isinstance(layer, (Packed, MaxPool2d))
            end += 1
        end = max(end, begin + 1)
        yield Run(begin, end, steps, places) if ops > 1 else Run(begin, end, [], [])
        begin = end


def _step(layer: nn.Module) -> list[int] | None:
    """How `packed_sequential` computes a layer, if it does."""
    step = STEPS.get(type(layer))
    if step is None or getattr(layer, "return_indices", False):
        return None
    return [int(number) for number in step(layer)]


def _pool(layer: MaxPool2d) -> Iterable[int]:
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return (MAX_POOL2D, *(number for size in sizes for number in pair(size)), layer.ceil_mode)


def _linear(layer: SparseLinear) -> Iterable[int]:
    return (SPARSE_LINEAR, layer.out_features, layer.in_features, layer.bias is not None, layer.activation == "relu")


def _conv(layer: SparseConv2d) -> Iterable[int]:
    where = (*layer.weight_shape, *layer.stride, *layer.padding, *layer.dilation, layer.groups)
    return (SPARSE_CONV2D, *where, layer.bias is not None, layer.activation == "relu")


STEPS: dict[type[nn.Module], Callable[[Any], Iterable[int]]] = {
    nn.Identity: lambda _: (),
    nn.ReLU: lambda _: (RELU,),
    nn.Flatten: lambda layer: (FLATTEN, layer.start_dim, layer.end_dim),
    MaxPool2d: _pool,
    SparseLinear: _linear,
    SparseConv2d: _conv,
}
