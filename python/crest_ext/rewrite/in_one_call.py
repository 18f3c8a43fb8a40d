"""Packed layers in a row become one call: the part of `pack` that saves what lies between them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from crest_ext.nn.packed_sequential import PackedSequential
from crest_ext.rewrite.additions import additions_into_convolutions
from crest_ext.rewrite.calls import has_hooks
from crest_ext.rewrite.functions import to_modules, without_identities
from crest_ext.rewrite.residuals import gather_residuals, is_step, named


def in_one_call(model: nn.Module, args: tuple[Any, ...]) -> nn.Module:
    """The model with an nn.PackedSequential in place of each nn.Sequential, or row in a traced graph, that gains by it.

    What is added to the result of a sparse convolution becomes a part of it. An nn.Sequential keeps all its names.
    Modules of a graph get the place "first_to_last" in front of theirs. A model of more than nn.Sequentials that
    torch.fx has not traced yet is, if that saves more calls than they do, or if something is added.
    """
    if isinstance(model, fx.GraphModule):
        added = additions_into_convolutions(without_identities(model), args)
        return _in_rows(model, -1 if added else 0) or model
    if any(module._modules and type(module) is not nn.Sequential for module in model.modules()):
        graph = without_identities(to_modules(model, args, always=True))
        saved = sum(made.saved for module in model.modules() if (made := _packed(module)))
        if isinstance(graph, fx.GraphModule):
            added = additions_into_convolutions(graph, args)  # in modules of the model as well, so there is no way back
            if in_rows := _in_rows(graph, -1 if added else saved):
                return in_rows
    for parent in reversed([*model.modules()]):  # what is inside first
        for name, child in parent._modules.items():
            if child is not None and (made := _packed(child)):
                parent._modules[name] = made
    return _packed(model) or model


def _in_rows(graph: fx.GraphModule, least: int) -> nn.Module | None:
    """The graph with its rows as one call each, if that saves more calls than `least`."""
    gather_residuals(graph)
    rows = [(nodes, made) for nodes in _rows(graph) if (made := PackedSequential.of(named(graph, nodes)))]
    if sum(made.saved for _, made in rows) <= least:
        return None
    for nodes, made in rows:
        names = list(made._modules)
        _group(graph, nodes, f"{names[0]}_to_{names[-1]}", made.eval())
    graph.delete_all_unused_submodules()
    graph.recompile()
    return _alone(graph) or graph


def _alone(model: fx.GraphModule) -> nn.Module | None:
    """The one module that a model calls, with what it gets, for what it gives: without a graph around it."""
    match list(model.graph.nodes):
        case [fx.Node(op="placeholder") as x, fx.Node(op="call_module") as call, fx.Node(op="output") as out]:
            if call.args == (x,) and not call.kwargs and out.args == (call,):
                return model.get_submodule(call.target)  # type: ignore[arg-type]
    return None


def _packed(module: nn.Module) -> PackedSequential | None:
    if type(module) is not nn.Sequential or has_hooks(module):
        return None
    made = PackedSequential.of({name: child for name, child in module._modules.items() if child is not None})
    return made.train(module.training) if made else None


def _rows(model: fx.GraphModule) -> list[list[fx.Node]]:
    """Calls of modules that can be steps, each on nothing but the result of the one before, which has no other use."""
    rows: list[list[fx.Node]] = [[]]
    for node in model.graph.nodes:
        if is_step(model, node):
            if not (rows[-1] and node.args == (rows[-1][-1],) and len(rows[-1][-1].users) == 1):
                rows.append([])
            rows[-1].append(node)
    return [row for row in rows if row]


def _group(model: fx.GraphModule, nodes: list[fx.Node], name: str, made: PackedSequential) -> None:
    while hasattr(model, name):
        name += "_"
    model.add_submodule(name, made)
    with model.graph.inserting_before(nodes[0]):
        nodes[-1].replace_all_uses_with(model.graph.call_module(name, nodes[0].args))
    for node in reversed(nodes):
        model.graph.erase_node(node)
