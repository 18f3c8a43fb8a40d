"""torch's modules without weights, by other calls of torch that its CPU kernels are several times as fast at.

For evaluation: what is between sparse layers takes most of the time once these are fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d, equal in every bit. Channels go last meanwhile, as torch's kernel for that is vectorized."""

    @classmethod
    def from_module(cls, pool: nn.MaxPool2d) -> MaxPool2d:
        return cls(pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or self.return_indices:
            return super().forward(x)
        return super().forward(x.contiguous(memory_format=torch.channels_last)).contiguous()


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch.nn.LocalResponseNorm within a few roundings, by adding channels to their neighbours.

    x / (k + alpha / size * sum over the neighbours' squares) ** beta, as there: torch pools a five-dimensional copy.
    """

    @classmethod
    def from_module(cls, norm: nn.LocalResponseNorm) -> LocalResponseNorm:
        return cls(norm.size, norm.alpha, norm.beta, norm.k)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return super().forward(x)
        squares = x * x
        sums = squares.clone()
        for by in range(1, self.size // 2 + 1):  # of an even size, the neighbour before is the one that counts
            sums[:, by:] += squares[:, :-by]
            if 2 * by < self.size:
                sums[:, :-by] += squares[:, by:]
        scale = sums.mul_(self.alpha / self.size).add_(self.k)
        if self.beta != 0.75:
            return x / scale.pow_(self.beta)
        root = scale.sqrt_()
        return x / root.mul_(root.sqrt())  # a power takes ten times as long


QUICK: dict[type[nn.Module], Any] = {nn.MaxPool2d: MaxPool2d, nn.LocalResponseNorm: LocalResponseNorm}
