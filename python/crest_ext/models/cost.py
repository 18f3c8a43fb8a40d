"""What a network costs to run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
        def hook(module: nn.Module, _: object, y: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            counts[name] = counts.get(name, 0) + y.numel() * weight[0].numel()

        return hook

    training = {module: module.training for module in model.modules()}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count(name)) for name, layer in layers]
    try:
        with torch.no_grad():
            model.eval()(example_input)
    finally:
        for handle in handles:
            handle.remove()
        for module, was in training.items():
            module.training = was
    return counts
