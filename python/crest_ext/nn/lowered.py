"""Conv2d whose filters all leave out the same numbers of a window."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoweredConv2d(nn.Conv2d):
    """What is left of a Conv2d in which some shapes, weight[:, c, i, j], are zero: a narrower lowered matrix.

    A convolution is the product of its filters, (n, c kh kw), with a matrix that has each window of the image as a
    column. Here k rows of that matrix are made, as an image of k channels; weight, (n, k, 1, 1), is what is left of the
    filters. In training and for ONNX it convolves with `dense_weight()`: the gather's gradient is slow. As Conv2d it
    takes (n, c, h, w), or one image (c, h, w).

    Args:
        channels, window, strides, dilations: of the Conv2d, in which k of its shapes are left; what this one's
            attributes by the names of a Conv2d say is of the 1x1 convolution.
        out_channels: n.
        count: k.
        pads: of the Conv2d: left, right, top and bottom.
        pad_mode: of `torch.nn.functional.pad`.
        bias: whether there is one.
        factory: device and dtype.

    Attributes:
        shapes: (3, k) buffer, int64: c, i and j of each row of that matrix; at first all 0.

    Source: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, section 3.2.
    """

    shapes: Tensor

    def __init__(
        self,
        channels: int,
        out_channels: int,
        window: tuple[int, ...],
        count: int,
        strides: tuple[int, ...] = (1, 1),
        dilations: tuple[int, ...] = (1, 1),
        pads: tuple[int, ...] = (0, 0, 0, 0),
        pad_mode: str = "constant",
        bias: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__(count, out_channels, 1, bias=bias, **factory)
        self.channels, self.window, self.strides, self.dilations = channels, window, strides, dilations
        self.pads, self.pad_mode = pads, pad_mode
        self.register_buffer("shapes", torch.zeros(3, count, dtype=torch.int64, device=self.weight.device))

    @property
    def count(self) -> int:
        return self.in_channels

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, kept: Tensor) -> LoweredConv2d:
        """A new module with new parameters.

        Args:
            conv: without groups; not changed.
            kept: (c, kh, kw); bool, False drops a shape, whether or not it is zero.

        Raises:
            ValueError: conv has groups, or kept is not as above or keeps nothing.
        """
        if conv.groups != 1:
            raise ValueError(f"LoweredConv2d: groups must be 1, got {conv.groups}")
        if kept.dtype != torch.bool or kept.shape != conv.weight.shape[1:] or not kept.any():
            rule = f"must be bool, {tuple(conv.weight.shape[1:])}, and keep some"
            found = f"{kept.dtype}, {tuple(kept.shape)}, {int(kept.count_nonzero())} of {kept.numel()}"
            raise ValueError(f"LoweredConv2d: kept {rule}, got {found}")
        module = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            int(kept.sum()),
            conv.stride,
            conv.dilation,
            tuple(conv._reversed_padding_repeated_twice),
            "constant" if conv.padding_mode == "zeros" else conv.padding_mode,
            conv.bias is not None,
            device="meta",
        )
        weight = conv.weight.detach().flatten(1)[:, kept.flatten().to(conv.weight.device)]
        module.weight = nn.Parameter(weight[:, :, None, None], conv.weight.requires_grad)
        if conv.bias is not None:
            module.bias = nn.Parameter(conv.bias.detach().clone(), conv.bias.requires_grad)
        module.shapes = kept.nonzero().t().contiguous().to(conv.weight.device)
        return module.train(conv.training)

    def dense_weight(self) -> Tensor:
        """(n, c, kh, kw), with zeros for the shapes left out."""
        dense = self.weight.new_zeros(self.out_channels, self.channels, *self.window)
        c, i, j = self.shapes
        return dense.index_put((torch.arange(len(dense), device=c.device)[:, None], c, i, j), self.weight.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[-3] != self.channels:
            c = self.channels
            raise ValueError(f"LoweredConv2d: x must have shape (n, {c}, h, w) or ({c}, h, w), got {tuple(x.shape)}")
        if any(self.pads):
            x = F.pad(x, self.pads, self.pad_mode)
        if self.training or (not torch.compiler.is_dynamo_compiling() and torch.onnx.is_in_onnx_export()):
            return F.conv2d(x, self.dense_weight(), self.bias, self.strides, 0, self.dilations)
        for side in (0, 1):  # the windows come last, so that after the height the width is the last but one
            reach = (self.window[side] - 1) * self.dilations[side] + 1
            x = x.unfold(-2, reach, self.strides[side])[..., :: self.dilations[side]]
        c, i, j = self.shapes
        return F.conv2d(x.movedim((-2, -1), (-4, -3))[..., c, i, j, :, :], self.weight, self.bias)

    def extra_repr(self) -> str:
        whole = self.channels * self.window[0] * self.window[1]
        shown = f"{self.channels}, {self.out_channels}, window={self.window}, shapes={self.in_channels} of {whole}"
        shown += f", stride={self.strides}, pads={self.pads}, dilation={self.dilations}"
        return shown + ("" if self.bias is not None else ", bias=False")
