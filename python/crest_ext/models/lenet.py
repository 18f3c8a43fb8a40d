"""The LeNets of Dynamic Network Surgery, with the layer names of the authors' Caffe files."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


def caffe_xavier_(model: nn.Module) -> None:
    """Caffe's "xavier" filler: U(-a, a) with a = sqrt(3 / fan_in); biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = math.sqrt(3 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class LeNet300100(nn.Module):
    """784 - 300 - 100 - 10, 266,610 parameters. x: (n, ...) of 784 values each, MNIST / 256."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.ip1 = nn.Linear(784, 300)
        self.ip2 = nn.Linear(300, 100)
        self.ip3 = nn.Linear(100, 10)
        caffe_xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.ip1(x.flatten(1)))
        x = F.relu(self.ip2(x))
        return self.ip3(x)


class LeNet5(nn.Module):
    """Caffe's LeNet: no activation after the convolutions. 431,080 parameters. x: (n, 1, 28, 28), MNIST / 256."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.ip1 = nn.Linear(800, 500)
        self.ip2 = nn.Linear(500, 10)
        caffe_xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.ip1(x.flatten(1)))
        return self.ip2(x)


class LeNetDigits(LeNet5):
    """LeNet5 with 3x3 kernels, for 8x8 images: 114,760 parameters. x: (n, 1, 8, 8) in [0, 1]."""

    input_shape = (1, 8, 8)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(1, 20, 3, padding=1)
        self.conv2 = nn.Conv2d(20, 50, 3, padding=1)
        self.ip1 = nn.Linear(200, 500)
        self.ip2 = nn.Linear(500, 10)
        caffe_xavier_(self)
