"""What goes in comes out, bit for bit, in few bytes."""

from __future__ import annotations

import io
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crest_ext import _C
from crest_ext.container import codecs, load, load_file, safe_open, save, save_file
from crest_ext.container.files import Reader
from crest_ext.container.index import CODECS, DTYPES, EXPANSION, RANS

SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (3, 0, 5), (4, 5, 6), (1000,)]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert (got[name].dtype, got[name].shape) == (expected[name].dtype, expected[name].shape)
        assert bits(got[name]) == bits(expected[name])


def some(dtype: torch.dtype, *shape: int, density: float = 1.0) -> Tensor:
    """Every bit pattern there is, NaN payloads included; bytes are 0 or 1 for a bool."""
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    raw[torch.rand(shape) >= density] = 0
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype, density: float) -> None:
    tensors = {f"{shape}": some(dtype, *shape, density=density) for shape in SHAPES}
    assert_same(load(save(tensors)), tensors)


def test_bit_patterns_that_compare_equal_or_not_at_all(tmp_path: Path) -> None:
    patterns = [0x00000000, 0x80000000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x00000001, 0x7F800000]
    words = torch.tensor(patterns, dtype=torch.uint32).view(torch.float32)
    tensors = {"dense": words, "sparse": torch.cat([words, torch.zeros(10000), words])}
    save_file(tensors, tmp_path / "x.crest")
    with safe_open(tmp_path / "x.crest") as file:
        assert CODECS[file.entry("sparse").codec] == "rans"
    assert_same(load_file(tmp_path / "x.crest"), tensors)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.int32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40), elements=st.integers(-1, 1)
    ),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    st.text(max_size=20),
)
def test_any_tensor_name_and_metadata(array: np.ndarray, metadata: dict[str, str], name: str) -> None:
    tensors = {name: torch.from_numpy(array.copy())}
    data = save(tensors, metadata)
    assert_same(load(data), tensors)


@pytest.mark.parametrize("last", [0, 127, 128, 16383, 16384, 2**21 - 1, 2**21])
def test_gaps_around_every_varint_length(last: int) -> None:
    sparse = torch.zeros(2**21 + 1, dtype=torch.int64)
    sparse[[0, last]] = torch.tensor([1, -2])
    tensors = {"x": sparse}
    assert_same(load(save(tensors)), tensors)


def test_not_contiguous_and_parameters() -> None:
    weight = torch.randn(6, 4).t()
    assert_same(load(save({"w": torch.nn.Parameter(weight), "v": weight[::2]})), {"w": weight, "v": weight[::2]})


def test_the_smallest_codec_wins() -> None:
    half = torch.randn(100, 100) * (torch.rand(100, 100) < 0.5)
    tensors = {"noise": some(torch.uint8, 4096), "zeros": torch.zeros(64, 64), "steps": torch.arange(4096)}
    tensors["sparse"] = torch.where(torch.rand(200, 200) < 0.05, torch.randn(200, 200), 0.0)
    tensors["mask"] = torch.rand(200, 200) < 0.05
    tensors["large"], tensors["many zeros"] = torch.randn(600, 600), torch.zeros(2000, 1000)
    tensors["repeated"] = torch.randn(1000).repeat(500)
    data = save(tensors | {"half": half})
    file = Reader(io.BytesIO(data), len(data), "x")
    chosen = {name: CODECS[file.entry(name).codec] for name in [*tensors, "half"]}
    assert chosen["noise"] == "raw"
    assert chosen["steps"] == chosen["repeated"] == chosen["many zeros"] == "deflated"
    assert chosen["sparse"] == chosen["mask"] == chosen["half"] == chosen["large"] == "rans"
    kept = int(torch.count_nonzero(tensors["sparse"]))
    assert file.entry("sparse").length < kept * (4 + 1)
    assert file.entry("mask").length < 200 * 200 / 8


def test_too_small_a_payload_becomes_a_little_longer() -> None:
    """The coder takes less than 1/1032 of this layer's bytes, which no reader accepts; deflated, it took 4,500."""
    i, weight = torch.arange(1500), torch.zeros(500, 800)
    weight[i * 7 % 500, i * i % 97 * 8] = 0.5
    codec, payload = codecs.encode(weight)
    assert len(_C.encode_tensor(weight.view(-1).view(torch.uint8).numpy(), "float", 4, 800)) * EXPANSION < weight.nbytes
    assert codec == RANS
    assert len(payload) < 1.1 * weight.nbytes / EXPANSION
    assert_same(load(save({"x": weight})), {"x": weight})


def test_all_zeros_of_any_size_is_small_and_can_be_read() -> None:
    tensors = {"x": torch.zeros(2000, 1000)}
    data = save(tensors)
    assert len(data) < 10000
    assert_same(load(data), tensors)


def test_same_bytes_whatever_the_order() -> None:
    a, b = torch.randn(50), torch.zeros(3)
    data = save({"a": a, "b": b}, {"k": "1", "j": "2"})
    assert data == save({"b": b, "a": a.clone()}, {"j": "2", "k": "1"})


def test_safe_open_reads_one_tensor(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5), "b": torch.ones(3, dtype=torch.bool)}
    save_file(tensors, tmp_path / "x.crest", {"recipe": "none"})
    with safe_open(tmp_path / "x.crest", framework="pt", device="cpu") as file:
        assert file.keys() == ["a", "b"]
        assert file.metadata() == {"recipe": "none"}
        assert torch.equal(file.get_tensor("b"), tensors["b"])
        with pytest.raises(ValueError, match=r"x\.crest: tensor must be one of a, b, got c$"):
            file.get_tensor("c")


def test_loaded_tensors_are_ours_to_change() -> None:
    data = save({"a": torch.randn(5), "z": torch.zeros(5), "e": torch.empty(0)})
    first = load(data)
    for tensor in first.values():
        tensor.add_(1)
    assert_same({"z": load(data)["z"]}, {"z": torch.zeros(5)})


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a": 3}, None, "save: tensor 'a' must be a Tensor, got int"),
        ({3: torch.zeros(1)}, None, "save: name must be a str of at most 65536 bytes, got 3"),
        ({"x" * 65537: torch.zeros(1)}, None, "save: name must be a str of at most 65536 bytes, got 'xxx"),
        ({"\ud800": torch.zeros(1)}, None, "save: name must be a str of at most 65536 bytes, got"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, None, "save: tensor 'a' must be float32, .*, got complex64"),
        ({"a": torch.zeros(1, device="meta")}, None, "save: tensor 'a' must be strided and hold data, got .* on meta"),
        ({"a": torch.eye(2).to_sparse()}, None, "save: tensor 'a' must be strided and hold data, got torch.sparse_coo"),
        ({}, {"a": 1}, "save: metadata must map str to str of at most 65536 bytes, got 'a'"),
    ],
)
def test_errors_of_save(tensors: dict, metadata: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        save(tensors, metadata)
