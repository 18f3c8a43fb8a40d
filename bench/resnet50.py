"""ResNet-50, which is no part of the package: `pack` and `decompose` take it as anybody's network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels of the 3x3 convolutions, and blocks


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut. The 3x3 one has the stride, as in today's ResNet-50."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = nn.Sequential()
        if channels_in != 4 * channels:
            self.downsample.append(nn.Conv2d(channels_in, 4 * channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(4 * channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50() -> nn.Sequential:
    """25,557,032 parameters. x: (n, 3, 224, 224).

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, padding=1))
    before = 64
    for stage, (channels, blocks) in enumerate(STAGES):
        for block in range(blocks):
            layers.append(Bottleneck(before, channels, 2 if stage and not block else 1))
            before = 4 * channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)).eval()
