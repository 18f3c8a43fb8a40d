"""What is added to the result of a sparse convolution becomes a part of it: residual blocks in `pack`."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from crest_ext.nn.sparse import SparseConv2d
from crest_ext.rewrite.calls import ACTIVATIONS, called_once, has_hooks
from crest_ext.rewrite.unchanged import unchanged

SUMS = (operator.add, operator.iadd, torch.add)


def additions_into_convolutions(graph: fx.GraphModule, args: tuple[Any, ...]) -> int:
    """Changes a traced model so that a SparseConv2d takes along what is added to its result, and a ReLU(6) behind that.

    Of the two that are added, it must be the one that is computed last, or can be, called once, and without hooks; the
    other a result or an input of its shape. A pass over memory is saved for each, and the number of these is returned.
    """
    shapes = Shapes(graph)
    with unchanged(graph):
        shapes.run(*args)
    saved, order = 0, {node: float(i) for i, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        method = node.op == "call_method" and node.target in ("add", "add_")
        both: tuple[Any, ...] = node.args if method or (node.op == "call_function" and node.target in SUMS) else ()
        if len(both) != 2 or node.kwargs or not all(isinstance(one, fx.Node) for one in both):
            continue
        other, last = sorted(both, key=order.__getitem__)
        if _convolution(graph, last) is None and _convolution(graph, other) and _can_wait(other, order):
            node.prepend(other)
            order[other], other, last = order[node] - 0.5, last, other
        conv = _convolution(graph, last)
        if conv is None or other is last or other.op in ("get_attr", "call_method") or not shapes.alike(other, last):
            continue
        if any(order[last] < order[user] < order[node] for user in other.users):  # and may change it
            continue
        if node.target in (operator.iadd, "add_") and both[0] is not last:  # what others read is changed
            continue
        saved += 1
        last.args = (*last.args, other)
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        if (activation := _only_activation(graph, last)) is not None:
            saved += 1
            conv.activation = ACTIVATIONS[type(graph.get_submodule(str(activation.target)))]
            activation.replace_all_uses_with(last)
            graph.graph.erase_node(activation)
    return saved


class Shapes(fx.Interpreter):
    """The shapes and dtypes of what a model computes in one run."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape, result.dtype
        return result

    def alike(self, one: fx.Node, two: fx.Node) -> bool:
        """Not only as one of them is a single number a channel here: for larger images, that may be stretched."""
        found = self.found.get(one)
        return found is not None and found == self.found.get(two) and found[0][2:].numel() > 1


def _convolution(graph: fx.GraphModule, node: fx.Node) -> SparseConv2d | None:
    """The one that a node calls, if it can take something along."""
    if not called_once(node) or len(node.users) != 1 or len(node.args) != 1 or node.kwargs:
        return None
    conv = graph.get_submodule(str(node.target))
    places = [m for parent in graph.modules() for m in parent._modules.values() if m is conv]
    fit = type(conv) is SparseConv2d and conv.activation == "none" and not has_hooks(conv)
    return conv if fit and len(places) == 1 else None  # type: ignore[return-value]


def _can_wait(node: fx.Node, order: dict[fx.Node, float]) -> bool:
    """Whether nothing takes, and may change, what a node takes after it."""
    return all(order[user] <= order[node] for user in node.args[0].users)  # type: ignore[union-attr]


def _only_activation(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The ReLU or ReLU6 that alone takes a node's result."""
    user, *others = (*node.users, None)  # none where nothing reads what is computed
    if user is None or others != [None] or user.op != "call_module" or user.args != (node,) or user.kwargs:
        return None
    module = graph.get_submodule(str(user.target))
    return user if type(module) in ACTIVATIONS and not has_hooks(module) else None
