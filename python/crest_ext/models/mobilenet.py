"""MobileNet: depthwise convolutions, each followed by a pointwise one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from crest_ext.nn import DepthwiseConv2d, SamePad2d

# (stride, channels at width 1) of the thirteen blocks; the paper's table prints the last stride as 2, by mistake.
BLOCKS = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def convolution(conv: nn.Conv2d, folded: bool) -> nn.Module:
    """With its BatchNorm, unless that is folded into it."""
    nn.init.trunc_normal_(conv.weight, std=0.09, a=-0.18, b=0.18)
    return conv if folded else nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, eps=1e-3))


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one, each with its activation."""

    def __init__(self, channels_in: int, channels: int, stride: int, folded: bool, activation: str) -> None:
        super().__init__()
        self.dw = convolution(DepthwiseConv2d(channels_in, 3, stride, "same", bias=folded), folded)
        self.dw_activation = ACTIVATIONS[activation]()
        self.pw = convolution(nn.Conv2d(channels_in, channels, 1, bias=folded), folded)
        self.pw_activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.pw_activation(self.pw(self.dw_activation(self.dw(x))))


class MobileNetV1(nn.Module):
    """MobileNet; 4,231,976 parameters with 1000 classes. x: (n, 3, h, w), in [-1, 1].

    Args:
        width_mult: alpha of the paper: the share of each layer's channels, rounded down; 1/32 to 1024.
        num_classes: outputs, at least one.
        resolution: rho of the paper times 224: the side of the images the network is meant for, 224, 192, 160 or 128
            there; default: 224, or 32 of a small one. It changes neither parameters nor what the network takes, which
            is images of any size: it is kept, and `input_shape`, (3, resolution, resolution), is what `crest inspect`
            gives the network.
        shallow: without the five blocks of 512 channels between those that change the size.
        small: for 32x32 images: two of the five layers that halve the image keep it.
        folded: for weights that BatchNorm has been folded into: convolutions with biases, and no BatchNorm.
        activation: "relu", the paper's, or "relu6", that of the authors' code.

    Raises:
        ValueError: the width leaves no channels or is beyond its bound, there are no classes, the resolution is no
            positive int, or the activation is unknown.

    Source: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017, table 1.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        num_classes: int = 1000,
        *,
        resolution: int | None = None,
        shallow: bool = False,
        small: bool = False,
        folded: bool = False,
        activation: Literal["relu", "relu6"] = "relu",
    ) -> None:
        super().__init__()
        if not 1 / 32 <= width_mult <= 1024:
            raise ValueError(f"MobileNetV1: width_mult must be 1/32 to 1024, got {width_mult}")
        if num_classes < 1:
            raise ValueError(f"MobileNetV1: num_classes must be at least 1, got {num_classes}")
        resolution = (32 if small else 224) if resolution is None else resolution
        if type(resolution) is not int or resolution < 1:
            raise ValueError(f"MobileNetV1: resolution must be an int of at least 1, got {resolution!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"MobileNetV1: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.resolution, self.input_shape = resolution, (3, resolution, resolution)
        channels, names, first = int(32 * width_mult), [], 1 if small else 2
        self.same = SamePad2d((3, 3), (first, first))
        self.stem = convolution(nn.Conv2d(3, channels, 3, first, bias=folded), folded)
        self.stem_activation = ACTIVATIONS[activation]()
        for i, (stride, wide) in enumerate(BLOCKS, 1):
            if not (shallow and 7 <= i <= 11):
                block = Separable(
                    channels, int(wide * width_mult), 1 if small and i == 2 else stride, folded, activation
                )
                self.add_module(f"block{i}", block)
                names.append(f"block{i}")
                channels = int(wide * width_mult)
        self.names = tuple(names)
        self.fc = nn.Linear(channels, num_classes)

    @classmethod
    def from_published(cls, weights: Mapping[str, Tensor], resolution: int | None = None) -> MobileNetV1:
        """The network of weights that its authors published, BatchNorm folded into them.

            model = MobileNetV1.from_published(safetensors.torch.load_file(path))

        Width and classes are those of the weights; the activation is ReLU6. There are 1001 classes of ImageNet in the
        published ones, the first of which is "background". x: (n, 3, h, w), pixels of 0 to 255 as x / 128 - 1.

        Args:
            weights: weight and bias of stem, block{i}.dw, block{i}.pw and fc, the last one's as of a 1x1 convolution,
                (classes, channels, 1, 1), or of a linear layer.
            resolution: as above; the weights do not tell.

        Raises:
            ValueError: a name is missing or unknown, or a shape is not that of such a network.
        """
        for name in ("stem.weight", "fc.weight"):
            if name not in weights or weights[name].dim() < 2:
                raise ValueError(f"MobileNetV1: weights must hold {name}, got {', '.join(weights) or 'nothing'}")
        state = {name: tensor.flatten(1) if name == "fc.weight" else tensor for name, tensor in weights.items()}
        width, classes = len(state["stem.weight"]) / 32, len(state["fc.weight"])
        model = cls(width, classes, resolution=resolution, folded=True, activation="relu6")
        expected = model.state_dict()
        for name in sorted(expected.keys() ^ state.keys()):
            holds = "hold" if name in expected else "not hold"
            raise ValueError(f"MobileNetV1: weights must {holds} {name}")
        for name, tensor in expected.items():
            if state[name].shape != tensor.shape:
                rule = f"{name} of width {width:g} must have shape {tuple(tensor.shape)}"
                raise ValueError(f"MobileNetV1: {rule}, got {tuple(state[name].shape)}")
        model.load_state_dict(state)
        return model

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_activation(self.stem(self.same(x)))
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.fc(torch.mean(x, (2, 3)))
