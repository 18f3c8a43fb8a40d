"""What a network costs to run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

COUNTED = (_ConvNd, nn.Linear)


@dataclass(frozen=True)
class LayerCost:
    """Of one layer, for a whole input."""

    name: str
    shape: tuple[int, ...] | None  # of its last output; None: it gave no tensor, or was not called
    multiply_adds: int | None  # None: not counted
    parameters: int
    bytes: int  # of its parameters and buffers
    seconds: float | None  # median; None: not called


def multiply_adds(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for a whole input, by name, in the order they run.

    All weights count, zeros as well. A layer that runs twice counts twice; other operations are left out, as in the
    papers.

    Args:
        model: run once, as it would be in evaluation; left as it was.
        example_input: what the model takes.
    """
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            positions = args[0] if getattr(module, "transposed", False) else y  # where each weight is used once
            counts[name] = counts.get(name, 0) + positions.numel() * weight[0].numel()

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, COUNTED)]
    with _evaluating(model), _hooked([layer.register_forward_hook(count(name)) for name, layer in layers]):
        model(example_input)
    return counts


def layer_costs(model: nn.Module, example_input: Tensor, rounds: int = 11) -> tuple[tuple[LayerCost, ...], float]:
    """What each layer costs, in the order they run, and the seconds of the whole model.

    Layers are convolutions, linear layers and modules without others inside. Those that neither run nor hold a tensor
    are left out; tensors that another module holds itself are a row of it. A tensor in several layers counts in the
    first.

    Args:
        model: on the CPU; run in turns as it is and with each layer timed, as it would be in evaluation; left as it
            was.
        example_input: what the model takes.
        rounds: of which the times are medians, after one to warm up. The whole model's is of the runs without timers,
            and layers' do not hold what is computed between them, so their sum is another.
    """
    counts = multiply_adds(model, example_input)
    layers, inside = dict[str, nn.Module](), set[nn.Module]()
    for name, module in model.named_modules():
        if module not in inside and (isinstance(module, COUNTED) or not any(True for _ in module.children())):
            layers[name] = module
            inside.update(module.modules())

    whole, spent, begun = list[float](), list[dict[str, float]](), dict[str, float]()  # seconds of each round
    shapes = dict[str, tuple[int, ...] | None]()

    def begin(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            begun[name] = time.perf_counter()

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, y: object) -> None:
            spent[-1][name] = spent[-1].get(name, 0.0) + time.perf_counter() - begun[name]
            shapes[name] = tuple(y.shape) if isinstance(y, Tensor) else None

        return hook

    with _evaluating(model):
        for _ in range(rounds + 1):
            start = time.perf_counter()
            model(example_input)
            whole.append(time.perf_counter() - start)
            spent.append({})
            handles = [layer.register_forward_pre_hook(begin(name)) for name, layer in layers.items()]
            with _hooked(handles + [layer.register_forward_hook(end(name)) for name, layer in layers.items()]):
                model(example_input)

    rows, seen = dict[str, LayerCost](), set[Tensor]()
    for name, module in model.named_modules():
        if module in inside and name not in layers:
            continue
        deep = name in layers
        parameters = set(module.parameters(deep)) - seen
        tensors = parameters | (set(module.buffers(deep)) - seen)
        seen |= tensors
        if tensors or name in shapes:
            rows[name] = LayerCost(
                name,
                shapes.get(name),
                counts.get(name),
                sum(p.numel() for p in parameters),
                sum(t.nbytes for t in tensors),
                statistics.median(turn.get(name, 0.0) for turn in spent[1:]) if name in shapes else None,
            )
    ordered = [*shapes, *(name for name in rows if name not in shapes)]
    return tuple(rows[name] for name in ordered), statistics.median(whole[1:])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode; each module's own mode comes back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def _hooked(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """With hooks that are there already, and gone afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
