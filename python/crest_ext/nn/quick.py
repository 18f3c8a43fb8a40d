"""torch's modules without weights, several times as fast on the CPU.

For evaluation: what is between sparse layers takes most of the time once these are fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.ops import local_response_norm, max_pool2d


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d by our op, where that can: float32 images, no indices and no gradient."""

    @classmethod
    def from_module(cls, pool: nn.MaxPool2d) -> MaxPool2d:
        return cls(pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        differentiable = x.requires_grad and torch.is_grad_enabled()
        if self.return_indices or differentiable or x.dtype != torch.float32 or x.dim() != 4:
            return super().forward(x)
        return max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch.nn.LocalResponseNorm by our op, where that can: float32, beta 0.75 and no gradient."""

    @classmethod
    def from_module(cls, norm: nn.LocalResponseNorm) -> LocalResponseNorm:
        return cls(norm.size, norm.alpha, norm.beta, norm.k)

    def forward(self, x: Tensor) -> Tensor:
        if self.beta != 0.75 or x.dtype != torch.float32 or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k)


QUICK: dict[type[nn.Module], Any] = {nn.MaxPool2d: MaxPool2d, nn.LocalResponseNorm: LocalResponseNorm}
