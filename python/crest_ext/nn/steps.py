"""What `packed_sequential` is told of each layer: its numbers, and the places of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from crest_ext import reference as ref
from crest_ext.nn.channel_mean import ChannelMean
from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.packed import Packed
from crest_ext.nn.quick import MaxPool2d
from crest_ext.nn.residual import Residual
from crest_ext.nn.separable import SeparableConv2d
from crest_ext.nn.shortcut import Shortcut
from crest_ext.nn.sparse import SparseConv2d, SparseLinear
from crest_ext.nn.stem import StemConv2d
from crest_ext.ops.depthwise_conv2d import pair, sides

CONVS = (SparseConv2d, DepthwiseConv2d, SeparableConv2d, StemConv2d)
OPENING = (*CONVS, SparseLinear, nn.Flatten, Shortcut)
Step = tuple[nn.Module | None, list[int]]  # a layer, or nothing that could have hooks, and its numbers


def opens(layer: nn.Module) -> bool:
    """Whether a run may begin with a layer: it takes what it takes as a module, and nothing more."""
    if isinstance(layer, Residual):
        return all(opens(next(iter(path), layer.last)) for path in (layer.inner, layer.other))
    return type(layer) in OPENING


def steps_of(layer: nn.Module) -> list[Step] | None:
    """How `packed_sequential` computes a layer, if it does."""
    if isinstance(layer, Residual):
        return _residual(layer)
    step = STEPS.get(type(layer))
    if step is None or getattr(layer, "return_indices", False):
        return None
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)):
        return None
    return [(layer, [int(number) for number in step(layer)])]


def _residual(block: Residual) -> list[Step] | None:
    """What it gets is kept while the other path is computed, or that path's result while the inner one is."""
    other, inner = _path(block.other), _path(block.inner)
    if other is None or inner is None:
        return None
    *numbers, _ = _conv(block.last)
    swap: list[Step] = [(None, [ref.SWAP])] if other else []
    containers: list[Step] = [(block, [ref.KEEP]), (block.inner, []), (block.other, [])]
    return [*containers, *other, *swap, *inner, (block.last, [*map(int, numbers), 1])]


def _path(path: nn.Sequential) -> list[Step] | None:
    found: list[Step] = []
    for layer in path:
        steps = steps_of(layer)
        if steps is None:
            return None
        found += steps
    return found


def tensors_of(layer: nn.Module) -> Iterator[tuple[str, str]]:
    """The places of those that a step of a layer takes: each weight, then each bias, if it is there."""
    names: tuple[str, ...] = ()
    if isinstance(layer, Packed):
        names = (*layer.tensors, "bias")
    elif isinstance(layer, SeparableConv2d):
        names = ("depthwise", "pointwise", "depthwise_bias", "bias")
    elif isinstance(layer, (DepthwiseConv2d, StemConv2d, nn.Linear)):
        names = ("weight", "bias")
    for name in names:
        if getattr(layer, name) is not None:
            yield "_parameters" if name in layer._parameters else "_buffers", name


def _pool(layer: MaxPool2d) -> Iterable[int]:
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return (ref.MAX_POOL2D, *(number for size in sizes for number in pair(size)), layer.ceil_mode)


def _linear(layer: SparseLinear) -> Iterable[int]:
    return (ref.SPARSE_LINEAR, layer.out_features, layer.in_features, layer.bias is not None, _ACT[layer.activation])


def _conv(layer: SparseConv2d) -> Iterable[int]:
    where = (*layer.weight_shape, *layer.stride, *layer.padding, *layer.dilation, layer.groups)
    return (ref.SPARSE_CONV2D, *where, layer.bias is not None, _ACT[layer.activation], 0)


def _where(layer: DepthwiseConv2d | SeparableConv2d | StemConv2d) -> Iterable[int]:
    padding = ref.SAME if isinstance(layer.padding, str) else sides(layer.padding)
    return (*layer.stride, *padding, *layer.dilation)


def _depthwise(layer: DepthwiseConv2d) -> Iterable[int]:
    return (ref.DEPTHWISE_CONV2D, *_where(layer), layer.bias is not None, _ACT[layer.activation])


def _separable(layer: SeparableConv2d) -> Iterable[int]:
    biases = layer.depthwise_bias is not None, layer.bias is not None
    activations = _ACT[layer.depthwise_activation], _ACT[layer.activation]
    return (ref.SEPARABLE_CONV2D, layer.out_channels, *_where(layer), *biases, *activations)


def _stem(layer: StemConv2d) -> Iterable[int]:
    return (ref.STEM_CONV2D, *_where(layer), layer.bias is not None, _ACT[layer.activation], layer.channels_last)


_ACT = {name: number for number, name in enumerate(ref.ACTIVATIONS)}
STEPS: dict[type[nn.Module], Callable[[Any], Iterable[int]]] = {
    nn.Identity: lambda _: (),
    nn.ReLU: lambda _: (ref.RELU,),
    nn.Flatten: lambda layer: (ref.FLATTEN, layer.start_dim, layer.end_dim),
    MaxPool2d: _pool,
    SparseLinear: _linear,
    SparseConv2d: _conv,
    DepthwiseConv2d: _depthwise,
    SeparableConv2d: _separable,
    StemConv2d: _stem,
    nn.AdaptiveAvgPool2d: lambda _: (ref.MEAN, True),
    ChannelMean: lambda layer: (ref.MEAN, layer.keepdim),
    nn.Linear: lambda layer: (ref.LINEAR, layer.bias is not None),
    Shortcut: lambda layer: (ref.SHORTCUT, *layer.stride, layer.before, layer.behind),
}
