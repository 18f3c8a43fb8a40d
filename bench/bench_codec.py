"""The bytes of a tensor in a file, and the time to write and to read them. GB/s are of the dense tensor, as bytes."""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crest_ext.container import codecs, load, save
from crest_ext.container.index import Stream
from timing import compare


def laplacian(shape: tuple[int, ...], sparsity: float) -> Tensor:
    weight = torch.distributions.Laplace(0.0, 1.0).sample(shape)
    return torch.where(torch.rand(shape) < sparsity, 0.0, weight)


def levels(weight: Tensor, most: int) -> Tensor:
    """Products of a scale and integers from -most to most; as many are 0 as before."""
    step = weight.abs().max() / most
    return (weight.abs() / step).ceil().copysign(weight).int() * step


def integers(shape: tuple[int, ...], sparsity: float, most: int) -> Tensor:
    """What the same weights are once quantised: (rows, columns), int8, from -most to most."""
    weight = levels(laplacian(shape, sparsity), most)
    return (weight / weight[weight > 0].min()).round().to(torch.int8)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "LeNet-300-100 fc1 (300, 784), 70 % zeros": lambda: laplacian((300, 784), 0.7),
    "LeNet-300-100 fc1 (300, 784), 90 % zeros": lambda: laplacian((300, 784), 0.9),
    "LeNet-300-100 fc1 (300, 784), 90 % zeros, 15 levels": lambda: levels(laplacian((300, 784), 0.9), 7),
    "LeNet-300-100 fc1 (300, 784), 98 % zeros": lambda: laplacian((300, 784), 0.98),
    "Laplacian (4096, 4096), 90 % zeros": lambda: laplacian((4096, 4096), 0.9),
    "Laplacian (4096, 4096), 90 % zeros, int8, 15 levels": lambda: integers((4096, 4096), 0.9, 7),
    "ResNet layer4 conv (512, 512, 3, 3), dense": lambda: torch.randn(512, 512, 3, 3) * (2 / (512 * 9)) ** 0.5,
}


@functools.cache
def prepared(name: str, rows: int | None) -> tuple[Tensor, bytes, bytes]:
    """A tensor's first rows, their bytes, and what zlib makes of them: that takes seconds."""
    torch.manual_seed(0)
    tensor = TENSORS[name]()[:rows]
    raw = tensor.numpy().tobytes()
    return tensor, raw, zlib.compress(raw, 9)


def zstandard() -> Any:
    """The module, or why it is not there."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        return "zstandard is not installed"


def order0(tensor: Tensor) -> float:
    """Bytes by the entropy alone: of the mask, and of what is kept.

    Of floats these are sign and exponent, and 23 bits of mantissa each, or places in a list of all that occur.
    """
    words: np.ndarray = tensor.flatten().view(torch.int32 if tensor.is_floating_point() else tensor.dtype).numpy()
    kept = words[words != 0]
    bits = entropy(kept)
    if tensor.is_floating_point():
        bits = min(bits + 32 * len(np.unique(kept)), entropy(kept >> 23) + 23 * kept.size)
    return (entropy(words != 0) + bits) / 8


def entropy(items: np.ndarray) -> float:
    """In bits, of all together."""
    counts = np.unique(items, return_counts=True)[1]
    return -float((counts * np.log2(counts / items.size)).sum())


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", TENSORS)
def bench_codec(benchmark: Any, name: str, direction: str) -> None:
    tensor, raw, deflated = prepared(name, None if benchmark.enabled else 8)
    zstd = zstandard()
    codec, payload = codecs.encode(tensor)
    stream = Stream(tensor.dtype, codec, tensor.numel(), len(payload), 0)
    sizes = {"zlib -9 bytes": len(deflated)}
    others: dict[str, Callable[[], Any] | str] = {"zlib -9": functools.partial(zlib.compress, raw, 9), "zstd -3": zstd}

    def decoded() -> Tensor:
        out = torch.empty(tensor.numel(), dtype=tensor.dtype)
        codecs.decode(stream, bytearray(payload), out, "w")
        return out.reshape(tensor.shape)

    if direction == "decode":
        others["zlib -9"] = functools.partial(zlib.decompress, deflated)
    if not isinstance(zstd, str):
        packed = zstd.ZstdCompressor(3).compress(raw)
        sizes["zstd -3 bytes"] = len(packed)
        encode = functools.partial(zstd.ZstdCompressor(3).compress, raw)
        others["zstd -3"] = (
            functools.partial(zstd.ZstdDecompressor().decompress, packed) if direction == "decode" else encode
        )
    compare(
        benchmark,
        decoded if direction == "decode" else functools.partial(codecs.encode, tensor),
        others,
        group=f"container, {direction} a tensor",
        case=name,
        rounds=1 if direction == "encode" and len(raw) > 1 << 23 else 5,  # zlib takes seconds
        nbytes=len(raw),
        **{
            "dense bytes": len(raw),
            "bytes": len(payload),
            "order-0 bound": order0(tensor),
        },
        **sizes,
    )
    assert torch.equal(decoded().view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("direction", ["save", "load"])
@pytest.mark.parametrize("threads", [2, 4])
def bench_threads(benchmark: Any, threads: int, direction: str) -> None:
    """A file of sixteen layers with 90 % zeros, by one thread and by several: the same bytes."""
    torch.manual_seed(0)
    rows = 1024 if benchmark.enabled else 8
    tensors = {f"layer{i}": laplacian((rows, 1024), 0.9) for i in range(16)}
    data = save(tensors)

    def by(count: int) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return save(tensors) if direction == "save" else load(data)
        finally:
            torch.set_num_threads(before)

    compare(
        benchmark,
        functools.partial(by, threads),
        {"1 thread": functools.partial(by, 1)},
        group=f"container, {direction} 16 tensors",
        case=f"{threads} threads",
        nbytes=4 * rows * 1024 * 16,
    )
    if direction == "save":
        assert by(threads) == by(1) == data
    else:
        assert all(torch.equal(t, tensors[name]) for name, t in by(threads).items())
