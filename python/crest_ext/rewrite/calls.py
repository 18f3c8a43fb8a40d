"""What the modules of a model do in one run, and which of them feed one other: the part of `pack` that looks."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import Tensor, nn

from crest_ext.nn import DepthwiseConv2d, SamePad2d
from crest_ext.nn.quick import QUICK
from crest_ext.rewrite.unchanged import unchanged

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}  # that kernels take along
FOLLOWERS = (nn.BatchNorm2d, *ACTIVATIONS, nn.Conv2d)
WATCHED = (nn.Linear, DepthwiseConv2d, nn.ZeroPad2d, SamePad2d, *FOLLOWERS, *QUICK)


@dataclass
class Call:
    """What a module got in its first call and gave in its last."""

    x: Tensor
    out: Tensor
    count: int = 0


def record(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Call]:
    """The calls of the watched modules, and of nn.Sequentials, by name, in one run."""
    calls: dict[str, Call] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(out, Tensor):
                call = calls.setdefault(name, Call(inputs[0], out))
                call.out, call.count = out, call.count + 1

        return hook

    watched = [(n, m) for n, m in model.named_modules() if type(m) in (*WATCHED, nn.Sequential)]
    hooks = [module.register_forward_hook(watch(name)) for name, module in watched]
    try:
        with unchanged(model):
            model(*args)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def followers(model: nn.Module, calls: dict[str, Call], args: tuple[Any, ...]) -> dict[str, str]:
    """The module that alone takes another's result, where each stands in one place and is called once.

    A BatchNorm2d, ReLU, ReLU6 or Conv2d without hooks. Neighbours in an nn.Sequential that is itself called, once: else
    the model calls its modules one by one, and may take what lies between them. And where torch.fx can trace the model,
    those that its graph connects.
    """
    modules = dict(model.named_modules())
    places = [m for parent in model.modules() for m in parent._modules.values() if m is not None]
    pairs = {}
    for one, two in itertools.chain(_in_sequentials(modules, calls), _in_graph(model, args)):
        first, second = modules[one], modules[two]
        if type(first) not in WATCHED or type(second) not in FOLLOWERS:
            continue
        a, b = calls.get(one), calls.get(two)
        once = a and b and a.count == b.count == 1 and places.count(first) == places.count(second) == 1
        if once and a and b and b.x is a.out and not has_hooks(second):
            pairs[one] = two
    return pairs


def before_in_row(name: str, modules: Mapping[str, nn.Module], calls: Mapping[str, Call]) -> tuple[str, str]:
    """The Linear or Conv2d whose result a module gets, "" if none, and the activation in between, or "none"."""
    before, activation = _before(name, calls), "none"
    if before and type(modules[before]) in ACTIVATIONS:
        before, activation = _before(before, calls), ACTIVATIONS[type(modules[before])]
    return (before, activation) if before and isinstance(modules[before], (nn.Linear, nn.Conv2d)) else ("", "none")


def _before(name: str, calls: Mapping[str, Call]) -> str:
    """The module whose result is what another gets."""
    if name not in calls:
        return ""
    return next((other for other, call in calls.items() if call.out is calls[name].x and other != name), "")


def _in_sequentials(modules: dict[str, nn.Module], calls: dict[str, Call]) -> Iterator[tuple[str, str]]:
    names = {module: name for name, module in modules.items()}
    for name, parent in modules.items():
        if type(parent) is nn.Sequential and name in calls and calls[name].count == 1:
            yield from itertools.pairwise(names[child] for child in parent._modules.values() if child is not None)


class Tracer(torch.fx.Tracer):
    """Does not look into a module without modules: whatever its code does, it is one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not m._modules or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, args: tuple[Any, ...], wrote: Callable[[], bool]) -> torch.fx.Graph | None:
    """The graph of a model, which leaves its constants in the model's attributes; None where torch.fx cannot trace it.

    Or where a graph would not do the same: where the model keeps something from call to call, as `wrote` of `unchanged`
    tells, or `args` has what may be left out, which a tracing takes for given.
    """
    given = list(inspect.signature(model.forward).parameters.values())[: len(args)]
    if any(parameter.default is not parameter.empty for parameter in given):
        return None
    try:
        graph = Tracer().trace(model)
    except Exception:  # whatever a model's code makes of a tensor that has no values
        return None
    return None if wrote() else graph


def _in_graph(model: nn.Module, args: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    with unchanged(model) as wrote:
        graph = trace(model, args, wrote)
    for node in graph.nodes if graph else ():
        if node.op == "call_module" and len(node.users) == 1:
            (user,) = node.users
            if user.op == "call_module" and user.args[:1] == (node,):
                yield node.target, user.target


def called_once(node: torch.fx.Node) -> bool:
    """Whether a node is its graph's only call of a module."""
    calls = node.graph.find_nodes(op="call_module")
    return node.op == "call_module" and sum(call.target == node.target for call in calls) == 1


def has_hooks(module: nn.Module) -> bool:
    return any(vars(module)[kind] for kind in vars(module) if kind.endswith("_hooks"))
