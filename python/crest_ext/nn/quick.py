"""torch's modules without weights, several times as fast on the CPU.

For evaluation: what is between sparse layers takes most of the time once these are fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext.ops import local_response_norm


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d, equal in every bit: the largest of the rows of a window, and of these the largest."""

    @classmethod
    def from_module(cls, pool: nn.MaxPool2d) -> MaxPool2d:
        return cls(pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        if x.dim() != 4 or self.return_indices or differentiable or not x.is_floating_point():
            return super().forward(x)
        return self._largest(self._largest(x.contiguous(), 0), 1)

    def _largest(self, x: Tensor, side: int) -> Tensor:
        """Of each window's rows (side 0) or columns (1)."""
        given = (self.kernel_size, self.stride, self.padding, self.dilation)
        size, stride, pad, dilation = (v if isinstance(v, int) else v[side] for v in given)
        length, reach = x.shape[2 + side], dilation * (size - 1) + 1
        out = (length + 2 * pad - reach + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        if self.ceil_mode and (out - 1) * stride >= length + pad:
            out -= 1  # a window must begin inside
        end = max((out - 1) * stride + reach - length - pad, 0)
        if pad or end:
            x = F.pad(x, (pad, end) if side else (0, 0, pad, end), value=-torch.inf)
        span = (out - 1) * stride + 1
        lines = [x.narrow(2 + side, i * dilation, span) for i in range(size)]
        lines = [line[..., ::stride] if side else line[:, :, ::stride] for line in lines]
        if size == 1:
            return lines[0].contiguous()
        largest = torch.maximum(lines[0], lines[1])
        for line in lines[2:]:
            torch.maximum(largest, line, out=largest)
        return largest


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
