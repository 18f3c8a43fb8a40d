"""Caffe's network for CIFAR-10."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Caffe's cifar10_full without its normalisation layers: 89,578 parameters. x: (n, 3, 32, 32), normalised.

    Caffe normalises the responses x of the first two stages over 3x3 neighbours within a channel, by (1 + 5e-5 mean
    x^2)^(3/4): less than 1.001 as long as x is below 5, so it is left out here. As in Caffe pooling rounds sizes up,
    and pools of averages count the pixels inside the image only. Weights begin as Caffe's, but for conv1, whose
    1e-4 is for pixels of 0 to 255: 64 times that here, for inputs of unit scale.

    Args:
        classes: outputs.
        dropout: of the paper's network; there it follows the last layer, where it drops classes. Here it precedes it.

    Source: Krizhevsky's cuda-convnet and Caffe's examples/cifar10; Wen et al., "Learning Structured Sparsity in Deep
        Neural Networks", NIPS 2016, table 3.
    """

    input_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.ip1 = nn.Linear(1024, classes)
        self.dropout = dropout
        for layer, std in ((self.conv1, 64e-4), (self.conv2, 0.01), (self.conv3, 0.01), (self.ip1, 0.01)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True))
        x = F.avg_pool2d(F.relu(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.avg_pool2d(F.relu(self.conv3(x)), 3, 2, ceil_mode=True)
        return self.ip1(F.dropout(x.flatten(1), self.dropout, self.training))
