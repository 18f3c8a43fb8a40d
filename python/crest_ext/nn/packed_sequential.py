"""Layers in a row, of which those on packed weights run in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from crest_ext import reference as ref
from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.packed import Packed
from crest_ext.nn.quick import MaxPool2d
from crest_ext.nn.residual import Residual
from crest_ext.nn.separable import SeparableConv2d
from crest_ext.nn.sparse import SparseConv2d, SparseLinear
from crest_ext.nn.stem import StemConv2d
from crest_ext.ops import packed_sequential
from crest_ext.ops.depthwise_conv2d import pair, sides

CONVS = (SparseConv2d, DepthwiseConv2d, SeparableConv2d, StemConv2d)
OPENING = (*CONVS, SparseLinear, nn.Flatten)
Step = tuple[tuple[str, ...], nn.Module | None, list[int]]  # the names that lead to a layer, that, and its numbers


class Run(NamedTuple):
    """Layers from `begin` to `end`, and how `packed_sequential` computes them; without steps, they are called."""

    begin: int
    end: int
    steps: list[int]
    layers: list[tuple[int, tuple[str, ...]]]  # all within: one, counted from `begin`, and the names that lead on
    tensors: list[tuple[int, str, str]]  # their places: one of `layers`, a dict of it, and a key
    saved: int  # calls


class PackedSequential(nn.Sequential):
    """torch.nn.Sequential for inference, in which neighbours that `packed_sequential` knows are one call of it.

    These are SparseConv2d, DepthwiseConv2d, SeparableConv2d, StemConv2d, SparseLinear, nn.quick.MaxPool2d, nn.Flatten,
    nn.ReLU and nn.Identity, where two or more of the first six follow each other, and Residual, of such layers. Any
    other module is called as it is.
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

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self._modules.values())
        for begin, end, steps, within, places, _ in self.runs:
            called = [_at(layers[begin + i], names) if names else layers[begin + i] for i, names in within]
            if not steps or any([layer._forward_hooks or layer._forward_pre_hooks for layer in called]):  # noqa: C419 (faster)
                for layer in layers[begin:end]:
                    x = layer(x)
            else:
                x = packed_sequential(x, [called[i].__dict__[kind][name] for i, kind, name in places], steps)
        return x


def _at(layer: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        layer = layer._modules[name]
    return layer


def _runs(layers: list[nn.Module]) -> Iterator[Run]:
    begin = 0
    while begin < len(layers):
        run = Run(begin, begin, [], [], [], -1)
        while run.end < len(layers) and (run.end > begin or opens(layers[run.end])):
            steps = _steps(layers[run.end])
            if steps is None:
                break
            ops = 0
            for names, layer, numbers in steps:
                ops += isinstance(layer, (*CONVS, SparseLinear, MaxPool2d))
                run.steps.extend(numbers)
                if layer is not None:
                    run.tensors.extend((len(run.layers), kind, name) for kind, name in _tensors(layer))
                    run.layers.append((run.end - begin, names))
            run = run._replace(end=run.end + 1, saved=run.saved + ops)
        begin = max(run.end, begin + 1)
        yield run if run.saved > 0 else Run(run.begin, begin, [], [], [], 0)


def opens(layer: nn.Module) -> bool:
    """Whether a run may begin with a layer: it takes what it takes as a module, and nothing more."""
    if isinstance(layer, Residual):
        return all(type(next(iter(path), layer.last)) in OPENING for path in (layer.inner, layer.other))
    return type(layer) in OPENING


def _steps(layer: nn.Module) -> list[Step] | None:
    """How `packed_sequential` computes a layer, if it does."""
    if not isinstance(layer, Residual):
        step = STEPS.get(type(layer))
        known = step is not None and not getattr(layer, "return_indices", False)
        return [((), layer, [int(number) for number in step(layer)])] if known and step else None
    paths = {name: _path(getattr(layer, name), name) for name in ("other", "inner")}
    other, inner = paths["other"], paths["inner"]
    if other is None or inner is None:
        return None
    *numbers, _ = _conv(layer.last)
    first = [*other, ((), None, [ref.SWAP])] if other else []
    containers: list[Step] = [((), layer, [ref.KEEP]), (("inner",), layer.inner, []), (("other",), layer.other, [])]
    return [*containers, *first, *inner, (("last",), layer.last, [*map(int, numbers), 1])]


def _path(path: nn.Sequential, name: str) -> list[Step] | None:
    found: list[Step] = []
    for key, layer in path._modules.items():
        steps = None if layer is None else _steps(layer)
        if steps is None:
            return None
        found += [((name, key, *names), leaf, numbers) for names, leaf, numbers in steps]
    return found


def _tensors(layer: nn.Module) -> Iterator[tuple[str, str]]:
    """The places of those that a step of a layer takes: each weight, then each bias, if it is there."""
    names: tuple[str, ...] = ()
    if isinstance(layer, Packed):
        names = (*layer.tensors, "bias")
    elif isinstance(layer, SeparableConv2d):
        names = ("depthwise", "pointwise", "depthwise_bias", "bias")
    elif isinstance(layer, (DepthwiseConv2d, StemConv2d)):
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


_ACT = {"none": 0, "relu": 1, "relu6": 2}
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
}
