"""torch's modules without weights, several times as fast on the CPU.

For evaluation: what is between sparse layers takes most of the time once these are fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.ops import local_response_norm


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
    """torch.nn.LocalResponseNorm by our op, where that can: float32, beta 0.75 and no gradient."""

    @classmethod
    def from_module(cls, norm: nn.LocalResponseNorm) -> LocalResponseNorm:
        return cls(norm.size, norm.alpha, norm.beta, norm.k)

    def forward(self, x: Tensor) -> Tensor:
        if self.beta != 0.75 or x.dtype != torch.float32 or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k)


QUICK: dict[type[nn.Module], Any] = {nn.MaxPool2d: MaxPool2d, nn.LocalResponseNorm: LocalResponseNorm}
