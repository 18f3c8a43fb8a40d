"""AlexNet in Caffe's shape: two groups in conv2, conv4 and conv5."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class AlexNet(nn.Module):
    """60,965,224 parameters with 1000 classes. x: (n, 3, 227, 227), mean subtracted.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep CNNs", NIPS 2012; Caffe's bvlc_alexnet.
    """

    input_shape = (3, 227, 227)

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(9216, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        for name, parameter in self.named_parameters():
            layer, _, kind = name.partition(".")
            if kind == "weight":
                nn.init.normal_(parameter, std=0.005 if layer in ("fc6", "fc7") else 0.01)
            else:
                nn.init.constant_(parameter, 0.0 if layer in ("conv1", "conv3", "fc8") else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.local_response_norm(F.relu(self.conv1(x)), 5), 3, 2)
        x = F.max_pool2d(F.local_response_norm(F.relu(self.conv2(x)), 5), 3, 2)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2)
        x = F.dropout(F.relu(self.fc6(x.flatten(1))), 0.5, self.training)
        x = F.dropout(F.relu(self.fc7(x)), 0.5, self.training)
        return self.fc8(x)
