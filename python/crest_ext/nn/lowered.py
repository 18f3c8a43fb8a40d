"""Conv2d whose filters all leave out the same numbers of a window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoweredConv2d(nn.Conv2d):
    """What is left of a Conv2d in which some shapes, weight[:, c, i, j], are zero: a narrower lowered matrix.

    A convolution is the product of its filters, (n, c kh kw), with a matrix that has each window of the image as a
    column. Here k rows of that matrix are made, as an image of k channels; weight, (n, k, 1, 1), is what is left of the
    filters. In training and for ONNX it convolves with `dense_weight()`: the gather's gradient is slow. As Conv2d it
    takes (n, c, h, w), or one image (c, h, w).

    Attributes:
        shapes: (3, k) buffer, int64: c, i and j of each row of that matrix.
        channels, window, strides, dilations, pads, pad_mode: of the Conv2d; its own are those of the 1x1 convolution.

    Source: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, section 3.2.
    """

    shapes: Tensor
    channels: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # left, right, top, bottom
    pad_mode: str

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
        module = cls(int(kept.sum()), conv.out_channels, 1, bias=conv.bias is not None, device="meta")
        weight = conv.weight.detach().flatten(1)[:, kept.flatten().to(conv.weight.device)]
        module.weight = nn.Parameter(weight[:, :, None, None], conv.weight.requires_grad)
        if conv.bias is not None:
            module.bias = nn.Parameter(conv.bias.detach().clone(), conv.bias.requires_grad)
        module.register_buffer("shapes", kept.nonzero().t().contiguous().to(conv.weight.device))
        module.window, module.strides, module.dilations = conv.kernel_size, conv.stride, conv.dilation
        module.channels, module.pads = conv.in_channels, tuple(conv._reversed_padding_repeated_twice)
        module.pad_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
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
