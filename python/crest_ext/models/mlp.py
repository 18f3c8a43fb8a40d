"""The multilayer perceptron of Structured Sparsity Learning."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """784 - 500 - 300 - 10, 545,810 parameters. x: (n, ...) of 784 values each, MNIST / 256.

    Args:
        dropout: probability of dropping a hidden neuron in training; the paper's network has none.
        input_dropout: the same of an input.

    Source: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, table 1; Caffe's "msra"
        filler: N(0, 2 / fan_in), biases 0.
    """

    input_shape = (1, 28, 28)

    def __init__(self, dropout: float = 0.0, input_dropout: float = 0.0) -> None:
        super().__init__()
        self.ip1 = nn.Linear(784, 500)
        self.ip2 = nn.Linear(500, 300)
        self.ip3 = nn.Linear(300, 10)
        self.dropout, self.input_dropout = dropout, input_dropout
        for layer in (self.ip1, self.ip2, self.ip3):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x.flatten(1), self.input_dropout, self.training)
        x = F.dropout(F.relu(self.ip1(x)), self.dropout, self.training)
        x = F.dropout(F.relu(self.ip2(x)), self.dropout, self.training)
        return self.ip3(x)
