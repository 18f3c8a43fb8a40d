"""Normalization over neighbouring channels, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from crest_ext.ops._grad import refuse_gradients


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha / size * sum of squares of `size` channels around)^beta, in one pass. For inference.

    As torch.nn.functional.local_response_norm, which pools a copy of x in between.

    Args:
        x: (n, c, ...); float32.
        size: of the neighbourhood: channels from i - size // 2 to i + (size - 1) // 2, where there are such.
        alpha: divided by size, as there.
        beta: 0.75, the value of the networks that have this layer: two square roots where a power takes ten times
            as long.
        k: added to the sum.

    Returns:
        As x.

    Raises:
        ValueError: a shape, dtype or value is not as above; x requires a gradient, and they are enabled.

    Work: reads x once from memory and size times from the cache, writes it once.
    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
        section 3.3.
    """
    refuse_gradients("local_response_norm", x=x)
    return torch.ops.crest.local_response_norm(x, size, alpha, beta, k)


@torch.library.register_fake("crest::local_response_norm")
def _fake(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    return x.new_empty(x.shape)
