"""Real networks as files: bytes, the time to write and to read them, and the memory that writing takes.

Their weights are looked for in $CREST_DATA/weights. Compared with a safetensors file, as it is and compressed. Files
that gain by threads are larger: bench_codec.py has one.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext.container import codecs, load, load_model, load_packed, save, save_file, save_model
from crest_ext.nn import SparseLinear
from timing import compare

NETWORKS = {
    "LeNet-300-100": "dns_lenet300100_original",
    "LeNet-300-100 after surgery": "dns_lenet300100_sparse",
    "LeNet-5": "dns_lenet5_original",
    "LeNet-5 after surgery": "dns_lenet5_sparse",
    "ResNet-20": "resnet20",
    "ResNet-32": "resnet32",
    "ResNet-44": "resnet44",
    "MobileNet-v1 0.25": "mobilenet_v1_0.25_128",
    "MobileNet-v1 0.50": "mobilenet_v1_0.5_160",
}


def peer(name: str) -> Any:
    """A module, or why it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return f"{name.partition('.')[0]} is not installed"


@functools.cache
def prepared(network: str, rows: int | None) -> tuple[dict[str, Tensor], bytes, bytes]:
    """A network's tensors, their safetensors file, and that file gzipped; of each tensor so many rows."""
    safetensors = peer("safetensors.torch")
    path = Path(os.environ.get("CREST_DATA") or ".") / "weights" / f"{NETWORKS[network]}.safetensors"
    if isinstance(safetensors, str) or not path.is_file():
        pytest.skip(safetensors if isinstance(safetensors, str) else f"{path} is not there")
    tensors = {name: t[:rows].clone() if t.dim() else t for name, t in safetensors.load_file(path).items()}
    plain = safetensors.save(tensors)
    return tensors, plain, gzip.compress(plain, 9)


@functools.cache
def zstandard(network: str, rows: int | None) -> bytes | str:
    """The same file by zstd at its level 19, which takes seconds."""
    zstd = peer("zstandard")
    return zstd if isinstance(zstd, str) else zstd.ZstdCompressor(19).compress(prepared(network, rows)[1])


@functools.cache
def larger(network: str, rows: int | None) -> int:
    """Tensors that take more bytes than by zstd at its level 19, each alone."""
    compressor, tensors = peer("zstandard").ZstdCompressor(19), prepared(network, rows)[0].values()
    return sum(len(codecs.encode(t)[1]) > len(compressor.compress(t.numpy().tobytes())) for t in tensors)


@pytest.mark.parametrize("direction", ["save", "load"])
@pytest.mark.parametrize("network", NETWORKS)
def bench_size(benchmark: Any, network: str, direction: str) -> None:
    rows = None if benchmark.enabled else 2
    tensors, plain, gzipped = prepared(network, rows)
    packed, safetensors, data = zstandard(network, rows), peer("safetensors.torch"), save(tensors)
    sizes = {"float32": sum(t.nbytes for t in tensors.values()), "bytes": len(data), "gzip -9 bytes": len(gzipped)}
    others: dict[str, Callable[[], Any] | str] = {"safetensors": functools.partial(safetensors.save, tensors)}
    if direction == "load":
        others = {
            "safetensors": lambda: safetensors.load(plain),
            "gzip": lambda: safetensors.load(gzip.decompress(gzipped)),
            "zstd": packed if isinstance(packed, str) else lambda: safetensors.load(unpacked(packed)),
        }
    if isinstance(packed, bytes):
        sizes["zstd -19 bytes"] = len(packed)
        sizes["tensors"] = len(tensors)
        sizes["larger than zstd -19"] = larger(network, rows)
    compare(
        benchmark,
        functools.partial(save, tensors) if direction == "save" else functools.partial(load, data),
        others,
        group=f"files of networks, {direction}",
        case=network,
        nbytes=sizes["float32"],
        **sizes,
    )
    for name, tensor in load(data).items():
        assert torch.equal(tensor, tensors[name])
    if benchmark.enabled:
        assert len(data) < min(size for what, size in sizes.items() if what.endswith((" bytes", "float32")))


def unpacked(data: bytes) -> bytes:
    plain: bytes = peer("zstandard").ZstdDecompressor().decompress(data)
    return plain


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def bench_memory(benchmark: Any, tmp_path: Path) -> None:
    """What writing a file takes beside the tensors."""
    count = 16 if benchmark.enabled else 2
    tensors = {f"layer{i}": torch.randn(1024, 1024) for i in range(count)}
    writers: dict[str, Callable[..., Any] | str] = {"crest": save_file, "torch.save": torch.save}
    safetensors = peer("safetensors.torch")
    writers["safetensors"] = safetensors if isinstance(safetensors, str) else safetensors.save_file
    functions = {
        who: write if isinstance(write, str) else functools.partial(write, tensors, tmp_path / "file")
        for who, write in writers.items()
    }
    ours = functions.pop("crest")
    assert callable(ours)
    compare(
        benchmark,
        ours,
        functions,
        group="files, memory of a save",
        case=f"{count} float32 (1024, 1024), {4 * count} MB",
        nbytes=sum(t.nbytes for t in tensors.values()),
        **{f"{who} MB": peak(f) for who, f in {"crest": ours, **functions}.items() if callable(f)},
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def bench_load_packed(benchmark: Any, tmp_path: Path) -> None:
    """From a file to a sparse layer, with and without the dense weight between them; AlexNet's fc6 at 9 % kept."""
    m, k = (4096, 9216) if benchmark.enabled else (64, 144)
    layer, path = nn.Linear(k, m).requires_grad_(False), tmp_path / "layer.crest"
    layer.weight.mul_(torch.rand(m, k) < 0.09)
    save_model(layer, path)
    wanted = SparseLinear.from_linear(layer)
    del layer

    def packed() -> nn.Module:
        return load_packed(nn.Linear(k, m, device="meta"), path)

    def by_dense() -> nn.Module:
        dense = nn.Linear(k, m, device="meta").to_empty(device="cpu")
        load_model(dense, path)
        return SparseLinear.from_linear(dense)

    for name, tensor in packed().state_dict().items():
        assert torch.equal(tensor, wanted.state_dict()[name])
    others: dict[str, Callable[[], Any] | str] = {"load_model, SparseLinear": by_dense}
    compare(
        benchmark,
        packed,
        others,
        group="files, to a sparse layer",
        case=f"({m}, {k}), 91 % zeros",
        nbytes=4 * m * k,
        **{f"{who} MB": peak(f) for who, f in {"crest": packed, **others}.items() if callable(f)},
    )


def peak(function: Callable[[], Any]) -> float:
    """MB that a call takes at most, beside what is there."""

    def most() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    function()  # what is loaded at the first call stays
    Path("/proc/self/clear_refs").write_text("5")  # the mark goes down to what is there
    before = most()
    function()
    return (most() - before) / 1024
