"""The papers' networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from crest_ext.models.alexnet import AlexNet
from crest_ext.models.convnet import ConvNet
from crest_ext.models.cost import LayerCost, layer_costs, multiply_adds
from crest_ext.models.decomposeme import Dec3, Dec8
from crest_ext.models.lenet import LeNet5, LeNet300100, LeNetDigits
from crest_ext.models.mlp import MLP
from crest_ext.models.mobilenet import MobileNetV1
from crest_ext.models.resnet import ResNet
from crest_ext.models.shallow import Shallow, Teacher

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": LeNet300100,
    "lenet_5": LeNet5,
    "lenet_digits": LeNetDigits,
    "mlp_784_500_300": MLP,
    "convnet": ConvNet,
    "alexnet": AlexNet,
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (20, 32, 44, 56)},
    "dec3": Dec3,
    "dec8": Dec8,
    "mobilenet_v1": MobileNetV1,
    "shallow": Shallow,
    "teacher": Teacher,
}
__all__ = [
    "MLP",
    "MODELS",
    "AlexNet",
    "ConvNet",
    "Dec3",
    "Dec8",
    "LayerCost",
    "LeNet5",
    "LeNet300100",
    "LeNetDigits",
    "MobileNetV1",
    "ResNet",
    "Shallow",
    "Teacher",
    "create_model",
    "layer_costs",
    "multiply_adds",
]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """A network with its paper's initial weights, drawn from torch's generator.

    Its `input_shape` is that of the sample it is meant for.

    Args:
        name: one of MODELS.
        **kwargs: of the network's class.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in MODELS:
        raise ValueError(f"create_model: name must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](**kwargs)
