"""Which layers a method works on."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from crest_ext.nn.layers import layers

Kind = Literal["all", "conv", "linear"]
CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "all": (nn.Linear, nn.Conv2d),
    "conv": (nn.Conv2d,),
    "linear": (nn.Linear,),
}


def select(
    who: str, model: nn.Module, values: float | Mapping[str, float], kind: Kind
) -> list[tuple[str, nn.Linear | nn.Conv2d, float]]:
    """The layers of a kind that can be masked, by name, each with its value, in the order of the model.

    Args:
        who: starts the messages.
        model: any module.
        values: one for all layers, or {name or fnmatch pattern: value}: the first match wins, and a layer that
            matches nothing is not selected. A pattern may be of a layer of the other kind.
        kind: "conv", "linear" or "all".

    Raises:
        ValueError: a pattern matches no layer, a name is hidden by a pattern before it, no layer is selected, or two
            of them share a parameter, which cannot have two masks.
    """
    modules, reasons = dict[str, nn.Linear | nn.Conv2d](), dict[str, str]()
    for name, module, reason in layers(model):
        if reason is None:
            modules[name] = module
        else:
            reasons[name] = reason
    there = ", ".join(map(repr, modules)) or "no layers"
    there += "".join(f"; not {name!r}, which {reason}" for name, reason in reasons.items())

    found = dict[str, tuple[str, float]]()
    for pattern, value in (values if isinstance(values, Mapping) else {"*": values}).items():
        matches = [name for name in modules if name == pattern or fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"{who}: layer {pattern!r} must be in the model, which has {there}")
        if pattern in found:
            raise ValueError(f"{who}: layer {pattern!r} must come before {found[pattern][0]!r}, which matches it too")
        for name in matches:
            found.setdefault(name, (pattern, value))

    chosen = [(n, m, found[n][1]) for n, m in modules.items() if n in found and isinstance(m, CLASSES[kind])]
    if not chosen:
        raise ValueError(f"{who}: kind must be that of a layer named, got {kind!r} for {', '.join(map(repr, found))}")
    owners = dict[nn.Parameter, str]()
    for name, module, _ in chosen:
        for parameter in module.parameters(recurse=False):
            if (owner := owners.setdefault(parameter, name)) != name:
                raise ValueError(f"{who}: layers {owner!r} and {name!r} must not share a parameter: leave one out")
    return chosen
