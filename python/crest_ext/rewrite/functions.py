"""Calls of torch's functions become modules, which the rest of `pack` looks at."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from crest_ext.nn import ChannelMean, Shortcut
from crest_ext.rewrite.calls import has_hooks, trace
from crest_ext.rewrite.unchanged import copies, unchanged

Model = TypeVar("Model", bound=nn.Module)
RELU, POOL = (nn.ReLU, ("inplace",)), ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
# A function, or the name of a tensor's method; the module that does the same, and its arguments in order.
MODULES: dict[Callable[..., Any] | str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), RELU),
    F.relu6: (nn.ReLU6, ("inplace",)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), (nn.MaxPool2d, POOL)),
    F.local_response_norm: (nn.LocalResponseNorm, ("size", "alpha", "beta", "k")),
    # The module's first dimension is 1 if it is not given, the function's is 0.
    **dict.fromkeys((torch.flatten, "flatten"), (partial(nn.Flatten, start_dim=0), ("start_dim", "end_dim"))),
}

STATELESS = (nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.LocalResponseNorm, nn.Flatten)


def to_modules(model: Model, args: tuple[Any, ...], always: bool = False) -> Model | fx.GraphModule:
    """The model with modules in place of calls of relu, relu6, max_pool2d, local_response_norm and flatten.

    And of pad where that makes an nn.Shortcut: of some rows and columns, and only channels; and of a mean of channels,
    which alone would be no reason to trace a model.

    A module of these kinds that is called again becomes one for each call, so that each may go with what is before it.

    A torch.fx.GraphModule on the same submodules, under their names. The model itself where torch.fx cannot trace it,
    where a module of modules has hooks, where what was traced does not give the same for `args`, or where it has no
    such calls, and it is not `always`.
    """
    if any(module._modules and has_hooks(module) for module in model.modules()):
        return model  # a graph calls none of those any more
    with unchanged(model) as wrote:
        if (graph := trace(model, args, wrote)) is None:
            return model
        found = [(node, made) for node in graph.nodes if (made := _module(node) or _shortcut(node))]
        found += _called_again(model, graph)
        if not found and not always:
            return model
        found += [(node, made) for node in graph.nodes if (made := _mean(node))]
        try:
            traced = fx.GraphModule(model, graph)
        except SyntaxError:  # of a module's name that is a word of Python
            return model
    for i, (node, module) in enumerate(found):
        name = f"{node.target if isinstance(node.target, str) else node.target.__name__}_{i}"
        parent = model.get_submodule(name.rpartition(".")[0])
        while hasattr(parent, name.rpartition(".")[2]):
            name += "_"
        traced.add_submodule(name, module)
        with graph.inserting_before(node):
            x = sliced.args[0] if (sliced := _sliced(node, module)) else node.args[0]
            node.replace_all_uses_with(graph.call_module(name, (x,)))
        graph.erase_node(node)
        if sliced and not sliced.users:
            graph.erase_node(sliced)
    for node in graph.nodes:
        node.type = None  # of annotations that are strings: nothing that a pickle could import
    traced.recompile()
    with unchanged(model):
        expected = model(*copies(args))
        try:
            same = _same(expected, traced(*copies(args)))
        except Exception:  # whatever a graph makes of a default that its tracing took for a tensor
            return model
    return traced.train(model.training) if same else model


def without_identities(model: Model) -> Model:
    """A traced model does not call modules any more that do nothing: a call takes as long as a small layer's work."""
    if isinstance(model, fx.GraphModule):
        for node in model.graph.find_nodes(op="call_module"):
            module = model.get_submodule(node.target)
            nothing = type(module) is nn.Identity or (type(module) is nn.Sequential and not module._modules)
            if nothing and not has_hooks(module):
                node.replace_all_uses_with(next(iter((*node.args, *node.kwargs.values()))))
                model.graph.erase_node(node)
        model.delete_all_unused_submodules()
        model.recompile()
    return model


def _module(node: fx.Node) -> nn.Module | None:
    """The module that does what a node does."""
    if node.op not in ("call_function", "call_method") or node.target not in MODULES:
        return None
    kind, names = MODULES[node.target]
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    plain = not any(isinstance(value, fx.Node) for value in given.values())
    return kind(**given) if plain and len(node.args) and given.keys() <= set(names) else None


def _shortcut(node: fx.Node) -> Shortcut | None:
    """The module for what a network pads with channels: images of which it takes some rows and columns."""
    if node.target is not F.pad or len(node.args) < 2:
        return None
    (x, pads, *rest), keywords = node.args, node.kwargs
    mode, value = (*rest, *[None] * (2 - len(rest)))[:2]
    if (keywords.get("mode", mode) or "constant") != "constant" or keywords.get("value", value):
        return None
    sliced = isinstance(x, fx.Node) and x.target is operator.getitem and x.args[1]
    if not isinstance(pads, tuple | list) or len(pads) != 6 or any(pads[:4]) or not isinstance(sliced, tuple):
        return None
    every = [s.step or 1 if isinstance(s, slice) and s.start is None and s.stop is None else 0 for s in sliced]
    plain = len(every) == 4 and every[:2] == [1, 1] and all(type(n) is int and n > 0 for n in every)
    before, behind = pads[4:]
    if not plain or not isinstance(before, int) or not isinstance(behind, int) or min(before, behind) < 0:
        return None
    return Shortcut((every[2], every[3]), before, behind)


def _mean(node: fx.Node) -> ChannelMean | None:
    """The module for the mean of each channel."""
    if node.op not in ("call_function", "call_method") or node.target not in (torch.mean, "mean"):
        return None
    (_, *given), names = node.args, ("dim", "keepdim")
    values = dict(zip(names, given, strict=False)) | node.kwargs
    dims, keepdim = values.get("dim"), values.get("keepdim", False)
    if not isinstance(dims, tuple | list) or sorted(map(str, dims)) != ["2", "3"]:
        return None
    if len(given) > 2 or not values.keys() <= set(names) or not isinstance(keepdim, bool):
        return None
    return ChannelMean(keepdim)


def _sliced(node: fx.Node, module: nn.Module) -> fx.Node | None:
    """The call before a node that its module does as well."""
    return node.args[0] if isinstance(module, Shortcut) else None  # type: ignore[return-value]


def _called_again(model: nn.Module, graph: fx.Graph) -> list[tuple[fx.Node, nn.Module]]:
    """Calls of modules without state after the first of each, with a copy of it for each."""
    seen, found = set(), []
    for node in graph.find_nodes(op="call_module"):
        module = model.get_submodule(str(node.target))
        if type(module) in STATELESS and not has_hooks(module) and len(node.args) == 1 and not node.kwargs:
            if node.target in seen:
                found.append((node, copy.deepcopy(module)))
            seen.add(node.target)
    return found


def _same(one: Any, two: Any) -> bool:
    """Whether two results are the same tensors, in the same structure."""
    (ones, structure), (twos, other) = tree_flatten(one), tree_flatten(two)
    tensors = all(isinstance(t, Tensor) for t in (*ones, *twos))
    return structure == other and tensors and all(map(torch.equal, ones, twos))
