"""Blocks of a residual network become one module each, so that they can be in a row: the part of `pack` for them."""

from __future__ import annotations

from torch import fx, nn

from crest_ext.nn.residual import Residual
from crest_ext.nn.sparse import SparseConv2d
from crest_ext.nn.steps import STEPS, opens
from crest_ext.rewrite.calls import called_once

KNOWN = (*STEPS, Residual)


def gather_residuals(graph: fx.GraphModule) -> None:
    """Changes a traced model so that an nn.Residual is in the place of two paths and the convolution that adds them.

    Both must begin with one result that nothing else takes, and be of modules that `packed_sequential` computes. Names
    are those of the model with "_" for ".".
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or len(node.args) != 2 or node.kwargs or node.args[0] is node.args[1]:
            continue
        last = graph.get_submodule(str(node.target))
        if type(last) is not SparseConv2d:
            continue
        (inner, x), (other, same) = (_path(graph, end) for end in node.args)
        if x is not same or set(x.users) != {(*inner, node)[0], (*other, node)[0]}:
            continue
        block = Residual(named(graph, inner), last, named(graph, other)).eval()
        if not opens(block):
            continue
        name = f"{str(node.target).replace('.', '_')}_with_all"
        while hasattr(graph, name):
            name += "_"
        graph.add_submodule(name, block)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (x,)))
        for done in (node, *reversed(inner), *reversed(other)):
            graph.graph.erase_node(done)


def named(graph: fx.GraphModule, nodes: list[fx.Node]) -> dict[str, nn.Module]:
    """The modules that nodes call, by names that may stand in one module."""
    return {str(node.target).replace(".", "_"): graph.get_submodule(str(node.target)) for node in nodes}


def is_step(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the only call of a module that can be a step, and with one argument."""
    if not called_once(node) or len(node.args) != 1 or node.kwargs:
        return False
    return type(graph.get_submodule(str(node.target))) in KNOWN


def _path(graph: fx.GraphModule, node: fx.Node) -> tuple[list[fx.Node], fx.Node]:
    """Calls one after another that lead to a node, each for the next alone, and what the first of them takes."""
    path: list[fx.Node] = []
    while len(node.users) == 1 and is_step(graph, node):
        path.insert(0, node)
        node = node.args[0]  # type: ignore[assignment]
    return path, node
