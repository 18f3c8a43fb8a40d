"""Codec 5: small integers, and floats that are such integers times a scale, of several matrices in one stream."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden import check_file, words_of
from test_malformed import BOOL, F16, entry, file
from test_scaled import NORMAL
from torch import Tensor

from crest_ext import _C
from crest_ext.container import codecs, load, mixed, safe_open, save, save_file
from crest_ext.container.fields import varint
from crest_ext.container.index import MIXED, MIXED_DTYPES

GOLDEN = Path(__file__).parent / "golden" / "mixed.crest"
I8 = 4


def integers(rows: int, columns: int, most: int = 4) -> Tensor:
    """As of a pruned layer: rows and columns are kept more often than others. No random generator: it may change."""
    noise = (torch.arange(rows * columns).reshape(rows, columns) + 1) * 0x9E3779B1 % 2**32
    noise = (noise ^ noise >> 15) * 0x45D9F3B % 2**32
    noise ^= noise >> 13
    r, c = torch.arange(rows)[:, None], torch.arange(columns)
    kept = noise % 97 < (r * 7 % 5) * (c * 11 % 7) * 2
    size = 1 + (noise >> 9) % most * ((noise >> 20) % 3 == 0)
    return torch.where(kept, torch.where((noise >> 5) % 4 == 0, -size, size), 0)


def tensors() -> dict[str, Tensor]:
    """Of each dtype; filters of 3 x 3, 5 x 5 and 1 x 2 taps; streams of one and of several, some of equal sizes."""
    dtypes = (torch.int8, torch.int16, torch.int32, torch.int64)
    return {
        "0.weight": integers(40, 60).float() * 0.0123,
        "1.weight": integers(40, 60, 5).float() * 0.0456,
        "2.weight": integers(40, 60, 5).float() * 0.0456,
        "conv1.weight": integers(20, 72).float().reshape(20, 8, 3, 3) * 0.3,
        "conv2.weight": integers(20, 75).float().reshape(20, 3, 5, 5) * 0.7,
        "conv3.weight": integers(20, 20).float().reshape(20, 10, 1, 2) * 0.9,
        "listed.weight": torch.tensor([0, 0.1, 0.25, 0.7, 1.5, -1.5, -0.75, -0.5, -0.125])[integers(40, 60)],
        "shortened": torch.tensor([0, 1, 2.703125, 7, -0.5859375])[integers(60, 60).clamp(-1, 3)],
        "double": integers(50, 50).double() * 3.3e-7,
        "tall": (integers(2400, 1) * 9).float() * 0.11,
        "some are large": (integers(60, 50, 9) * torch.where(torch.arange(50) % 9 == 0, 3, 1)).to(torch.int16),
        "unsigned": integers(50, 50).abs().to(torch.uint8),
        "bool": integers(60, 60) != 0,
        **{f"{dtype}".removeprefix("torch."): integers(50, 50).to(dtype) for dtype in dtypes},
    }


@pytest.mark.parametrize("source", ["golden", "new"])
def test_files(source: str, tmp_path: Path) -> None:
    """What is written now is the golden file, which a second reader understands from docs/format.md."""
    path = GOLDEN if source == "golden" else tmp_path / "x.crest"
    if source == "new":
        save_file(tensors(), path)
    check_file(path, GOLDEN, tensors(), MIXED)
    with safe_open(path) as got:
        assert len({got.entry(name).streams for name in tensors()}) < len(tensors())


def test_layers_of_different_scales_share_a_stream() -> None:
    layers = {f"{i}.weight": integers(30, 50).float() * (0.01 + 0.001 * i) for i in range(4)}
    data = save(layers)
    assert len(data) < sum(len(save({"weight": layer})) for layer in layers.values()) - 4 * 40
    assert all(torch.equal(tensor, layers[name]) for name, tensor in load(data).items())


NOT_SMALL = {
    "half": integers(50, 50).half(),
    "kept": torch.where(integers(50, 50) == 0, 0.0, torch.randn(50, 50)),
    "values": torch.randn(2, 128).repeat(20, 1),  # 256
    "infinite": torch.tensor([0, 1, 3.3, float("inf")]).repeat(40),
    "listed nan": torch.tensor([0, 1, 3.3, float("nan")]).repeat(40),
    "listed -0.0": torch.tensor([-0.0, 1, 3.3]).repeat(40),
    "random": torch.randn(50, 50),
    "nan": integers(50, 50).float() * float("nan"),
    "-0.0": torch.where(integers(50, 50) == 0, -0.0, integers(50, 50) * 0.3),
    "subnormal": integers(50, 50).float() * (NORMAL / 2),
    "large": (integers(50, 50) * 1000).int(),
    "too large": (integers(50, 50) * 10000).int(),
    "empty": torch.zeros(0, 3),
    "many": torch.zeros(mixed.MOST + 1, dtype=torch.int8),
}


@pytest.mark.parametrize("tensor", NOT_SMALL.values(), ids=NOT_SMALL)
def test_what_is_not_of_small_integers(tensor: Tensor) -> None:
    assert mixed.encode([tensor]) is None
    found = load(save({"x": tensor}))["x"]
    assert words_of(found) == words_of(tensor)


@pytest.mark.parametrize("dtype", MIXED_DTYPES)
def test_edges(dtype: torch.dtype) -> None:
    """One element, one row, one column, the largest and smallest integers, and a layer of zeros among others."""
    signed, most = dtype not in (torch.uint8, torch.bool), 1 if dtype == torch.bool else 15
    if dtype.itemsize > 1:
        most = mixed.LIMIT
    ends = torch.cat([torch.ones(20_662), torch.tensor([most, -most if signed else 1])])  # ones for the mean size
    some = [torch.tensor([1]), torch.tensor([[0], [1], [0]]), torch.tensor([[1, 0, 1, 1]]), torch.zeros(300, 5)]
    cast = [t.to(dtype) for t in (*some, torch.ones(1, 1, 1, 1), ends, ends.view(2, 14, 18, 41)[1:])]
    payload = mixed.encode(cast)
    assert payload is not None
    out = torch.empty(sum(t.numel() for t in cast), dtype=dtype)
    mixed.decode(bytearray(payload), out, "x")
    assert words_of(out) == [word for t in cast for word in words_of(t)]


ONE = varint(1) + b"\0\0" + struct.pack("<f", 1)
SCALE = "scale must be a normal number > 0 of finite products, got "
SIZE = bytes([4, 1, 1, 2])  # columns, rows, group, lag


@pytest.mark.parametrize(
    ("payload", "dtype", "message"),
    [
        (b"\xff", 0, "number of matrices must lie in the 0 bytes left"),
        (b"\5", 0, "number of matrices must be at most 4, got 5"),
        (b"\0\0", 0, "matrices must have 4 integers, got 0"),
        (varint(1) + b"\0\0abc", 0, "values must lie in the "),
        (varint(1) + b"\0\0" + struct.pack("<f", -1) + SIZE + b"\xff", 0, SCALE + "-1.0"),
        (varint(1) + b"\0\0" + struct.pack("<f", float("nan")) + SIZE + b"\xff", 0, SCALE + "nan"),
        (varint(1) + b"\4", 0, "bytes left out must be less than 4, got 4"),
        (varint(1) + b"\0", 0, "length of a list must lie in the 0 bytes left"),
        (varint(1) + b"\0\2" + struct.pack("<2f", 1, 1), 0, "values must be normal numbers and ascending"),
        (varint(1) + b"\0\2" + struct.pack("<2f", -1, 0), 0, "values must be normal numbers and ascending"),
        (varint(1) + b"\0\1" + struct.pack("<f", float("nan")), 0, "values must be normal numbers and ascending"),
        (varint(1) + b"\0\1" + struct.pack("<f", float("inf")), 0, "values must be normal numbers and ascending"),
        (ONE + b"\5\1\1\2", 0, "columns must be at most 4, got 5"),
        (ONE + b"\0", 0, "columns of the first matrix must be at least 1, got 0"),
        (ONE + b"\4\0\1\2", 0, "rows must be at least 1, got 0"),
        (ONE + b"\4\2\1\2", 0, "rows must be at most 1, got 2"),
        (ONE + b"\4\1\0\2", 0, "group must divide 4, got 0"),
        (ONE + b"\4\1\3\2", 0, "group must divide 4, got 3"),
        (ONE + b"\4\1\1\1", 0, "lag must be at least 2, got 1"),
        (ONE + b"\4\1\1\5", 0, "lag must be at most 4, got 5"),
        (ONE + b"\3\1\1\2", 0, "matrices must have 4 integers, got 3"),
        (varint(2) + b"\0" + 2 * (b"\0" + struct.pack("<f", 1)) + b"\3\1\1\2\0", 0, "matrices must have 4 integers$"),
        (ONE + SIZE + b"\xff" * 9, 0, "payload must end with its values, got "),
        (
            ONE + SIZE,
            F16,
            "a mixed tensor must be float32, float64, int8, int16, int32, int64, uint8, bool, got f",
        ),
    ],
)
def test_refused(payload: bytes, dtype: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"tensor 'x': {message}"):
        load(file(entry(payload, (4,), MIXED, dtype)))


def test_integers_that_the_dtype_does_not_have() -> None:
    for dtype, values, limits in ((I8, [300, 1, 0, 0], "-128 to 127"), (BOOL, [1, 2, 0, 0], "0 to 1")):
        payload = varint(1) + _C.encode_mixed(np.array(values, np.int16), [(1, 4, 1)])
        with pytest.raises(ValueError, match=f"tensor 'x': integers must be from {limits}, got 0 to {max(values)}"):
            load(file(entry(payload, (4,), MIXED, dtype)))


def test_integers_that_a_list_does_not_have() -> None:
    for values in ([3, 1, 0, 0], [-2, 1, 0, 0]):
        numbers = b"\0\3" + struct.pack("<3f", -1, 2, 3)
        payload = varint(1) + numbers + _C.encode_mixed(np.array(values, np.int16), [(1, 4, 1)])
        with pytest.raises(ValueError, match=f"tensor 'x': integers must be from -1 to 2, got {min(values)} to"):
            load(file(entry(payload, (4,), MIXED)))


def test_an_integer_of_more_than_16_bits() -> None:
    """A payload of ones: every bit is a 1, so the length never ends."""
    with pytest.raises(ValueError, match="integers must be at most 32767"):
        load(file(entry(ONE + SIZE + bytes(1), (4,), MIXED)))


def test_too_many_elements_a_byte() -> None:
    with pytest.raises(ValueError, match="must have at most 258 elements a byte, got 2000 in 7 bytes"):
        load(file(entry(varint(1) + bytes(6), (2000,), MIXED, I8)))


def test_damaged() -> None:
    """Each flipped bit gives other values or a refusal, and nothing else."""
    data = integers(20, 30).float() * 0.5
    listed = torch.tensor([0, 0.5, 1, 1.5, 2.5, -2.5, -1.5, -1, -0.5])[integers(20, 30)]
    data[8:] = listed[8:]
    payload = mixed.encode([data[:8], data[8:]])
    assert payload is not None
    assert torch.equal(load(file(entry(payload, (20, 30), MIXED)))["x"], data)
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert load(file(entry(bytes(flipped), (20, 30), MIXED)))["x"].isfinite().all()
        except ValueError as error:
            assert "tensor 'x': " in str(error)


@pytest.mark.parametrize(
    ("integers", "sizes", "message"),
    [
        (np.zeros(4, np.int32), [(1, 4, 1)], "integers must be contiguous int16"),
        (np.zeros(8, np.int16)[::2], [(1, 4, 1)], "integers must be contiguous int16"),
        (np.zeros(4, np.int16), [(1, 3, 1)], "sizes must be"),
        (np.zeros(4, np.int16), [(1, 5, 1)], "sizes must be"),
        (np.zeros(4, np.int16), [(2**33, 2**33, 1)], "sizes must be"),
        (np.zeros(4, np.int16), [(1, 4, 3)], "sizes must be"),
        (np.zeros(4, np.int16), [(0, 4, 1)], "sizes must be"),
    ],
)
def test_arguments(integers: np.ndarray, sizes: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.encode_mixed(integers, sizes)


def test_codec_is_chosen_where_it_is_smaller() -> None:
    assert codecs.encode(integers(60, 60).to(torch.int8))[0] == MIXED
    assert codecs.encode(torch.randint(-7, 8, (300, 300), dtype=torch.int8))[0] != MIXED  # nothing to learn
