"""Networks of one-dimensional convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def pair(channels_in: int, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """A vertical convolution, ReLU, a horizontal one, ReLU: for a convolution of kernel x kernel."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, (kernel, 1), (stride, 1), (padding, 0)),
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, kernel), (1, stride), (0, padding)),
        nn.ReLU(),
    )


class Dec3(nn.Module):
    """DecomposeMe for characters: three pairs and one linear layer; 2,983,236 parameters. x: (n, 1, 24, 24).

    Kernels are those of the network it is made of, with 96, 128 and 512 filters; 2x2 max-pooling, in place of its
    max-out, after the first two pairs. The papers leave padding open: here it keeps sizes, and the last pair, of 8x8,
    sees the whole.

    Args:
        classes: outputs.
        neurons: filters of the last pair.

    Source: Alvarez, Salzmann, "Learning the Number of Neurons in Deep Networks", NIPS 2016, section 4.1, after
        Jaderberg, Vedaldi, Zisserman, "Deep Features for Text Spotting", ECCV 2014.
    """

    input_shape = (1, 24, 24)

    def __init__(self, classes: int = 36, neurons: int = 512) -> None:
        super().__init__()
        self.pair1 = pair(1, 96, 9, padding=4)
        self.pair2 = pair(96, 128, 9, padding=4)
        self.pair3 = pair(128, neurons, 8, padding=1)
        self.fc = nn.Linear(neurons, classes)
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.pair1(x), 2)
        x = F.max_pool2d(self.pair2(x), 2)
        return self.fc(self.pair3(x).flatten(1))


class Dec8(nn.Module):
    """DecomposeMe for ImageNet: eight 3x3 pairs and one linear layer. x: (n, 3, 224, 224), normalised.

    The papers leave open where sizes shrink: here by a stride of two in the first pair, 2x2 max-pooling after the
    first, second, fourth and sixth, and an average at the end.

    Args:
        classes: outputs.
        neurons: filters of each layer: 512, or 640 and 768 in the over-complete networks.

    Source: Alvarez, Petersson, "DecomposeMe: Simplifying ConvNets for End-to-End Learning", 2016; Alvarez, Salzmann,
        "Learning the Number of Neurons in Deep Networks", NIPS 2016, section 4.1.
    """

    input_shape = (3, 224, 224)

    def __init__(self, classes: int = 1000, neurons: int = 512) -> None:
        super().__init__()
        first, more = pair(3, neurons, 3, 2, 1), [pair(neurons, neurons, 3, padding=1) for _ in range(7)]
        self.pairs = nn.ModuleList([first, *more])
        self.fc = nn.Linear(neurons, classes)
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        for i, layers in enumerate(self.pairs):
            x = layers(x)
            if i in (0, 1, 3, 5):
                x = F.max_pool2d(x, 2)
        return self.fc(x.mean((2, 3)))


def start(model: nn.Module) -> None:
    """He's initial weights; biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
