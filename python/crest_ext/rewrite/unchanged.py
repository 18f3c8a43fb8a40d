"""Runs of a model leave no trace in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map


def copies(args: tuple[Any, ...]) -> Any:
    """Arguments for a model that may write them."""
    return tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, args)


KEPT = ("_parameters", "_buffers", "_modules")


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """What runs of a model write into its attributes and buffers is undone: counters, what is kept for the next call.

    So is what a tracing leaves there. Of lists, dicts and sets, the items are restored, not what is in these. Yields a
    function that tells whether there is anything to undo, but the constants of a tracing and numbers in buffers.
    """
    before = [(module, _attributes(module), _buffers(module)) for module in model.modules()]

    def wrote() -> bool:
        return any(_wrote(*parts) for parts in before)

    try:
        yield wrote
    finally:
        for module, attributes, buffers in before:
            now = vars(module)
            for name in now.keys() - attributes.keys() - set(KEPT):
                del now[name]
            for name, (value, items) in attributes.items():
                if items is not None:
                    value.clear()
                    value.extend(items) if isinstance(value, list) else value.update(items)
                now[name] = value
            module._buffers.clear()
            for name, (buffer, numbers) in buffers.items():
                if buffer is not None:
                    buffer.copy_(numbers)
                module._buffers[name] = buffer


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each by name, and a copy of what can be changed in place."""
    found = {name: value for name, value in vars(module).items() if name not in KEPT}
    return {n: (v, copy.copy(v) if type(v) in (list, dict, set) else None) for n, v in found.items()}


def _buffers(module: nn.Module) -> dict[str, tuple[Tensor | None, Any]]:
    return {name: (b, None if b is None else b.clone()) for name, b in module._buffers.items()}


def _wrote(
    module: nn.Module, attributes: dict[str, tuple[Any, Any]], buffers: dict[str, tuple[Tensor | None, Any]]
) -> bool:
    now = {n: v for n, v in vars(module).items() if n not in KEPT and not n.startswith("_tensor_constant")}
    if now.keys() != attributes.keys() or module._buffers.keys() != buffers.keys():
        return True
    if any(module._buffers[name] is not buffer for name, (buffer, _) in buffers.items()):
        return True
    return any(now[n] is not v or (items is not None and not _same(v, items)) for n, (v, items) in attributes.items())


def _same(one: Any, two: Any) -> bool:
    """Whether two lists, dicts or sets have the same items."""
    a, b = ([id(item) for item in (x.values() if isinstance(x, dict) else x)] for x in (one, two))
    return a == b and (not isinstance(one, dict) or one.keys() == two.keys())
