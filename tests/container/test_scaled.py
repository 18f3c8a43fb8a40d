"""Codec 4: floats that are integers times a scale."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from test_golden import check_file, words_of
from test_malformed import BOOL, F16, entry, file
from torch import Tensor

from crest_ext.container import load, safe_open, save, save_file, scaled
from crest_ext.container.index import SCALED

GOLDEN = Path(__file__).parent / "golden" / "scaled.crest"
F64 = 1


def integers(n: int, most: int) -> Tensor:
    """From -most to most, zeros too. No random generator: it may change."""
    noise = (torch.arange(n) + 1) * 0x9E3779B1 % 2**32
    return (noise ^ noise >> 15) % (2 * most + 1) - most


def tensors() -> dict[str, Tensor]:
    """Of each width."""
    return {
        "weight": integers(900, 100).float().reshape(30, 30) * 0.0123,
        "bias": integers(900, 9000).float() * 1.7e-5,
        "wide": integers(900, 46).double() ** 3 * 3.3e-7,  # small ones too: the search starts from these
    }


@pytest.mark.parametrize("source", ["golden", "new"])
def test_files(source: str, tmp_path: Path) -> None:
    """What is written now is the golden file, which a second reader understands from docs/format.md."""
    path = GOLDEN if source == "golden" else tmp_path / "x.crest"
    if source == "new":
        save_file(tensors(), path)
    check_file(path, GOLDEN, tensors(), SCALED)


def test_scales_are_not_shared(tmp_path: Path) -> None:
    """Tensors of other scales stay apart, and each takes little more than its integers."""
    layers = {f"{i}.weight": integers(500, 100).float().reshape(20, 25) * (0.01 + 0.001 * i) for i in range(4)}
    save_file(layers, tmp_path / "x.crest")
    with safe_open(tmp_path / "x.crest") as got:
        assert {got.entry(name).codec for name in layers} == {SCALED}
        assert all(got.entry(name).length < 550 for name in layers)


NORMAL = torch.finfo(torch.float32).tiny


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(300),
        torch.zeros(300),
        torch.zeros(0),
        integers(300, 5).float() * float("nan"),
        torch.cat([integers(300, 5).float() * 0.3, torch.tensor([float("inf")])]),
        torch.cat([integers(300, 5).float() * 0.3, torch.tensor([-0.0])]),
        torch.cat([integers(300, 5).float() * 0.3, torch.tensor([0.31])]),
        torch.cat([integers(300, 5).float() * 0.3, torch.tensor([0.3 * scaled.LARGEST])]),
        integers(300, 5).float() * (NORMAL / 2),
        integers(300, 5).float() * 1e37,  # and -128 times it is not finite
        integers(300, 5).half() * 0.3,
    ],
    ids=["random", "zeros", "empty", "nan", "inf", "-0.0", "other", "large", "subnormal", "infinite", "half"],
)
def test_without_a_scale(tensor: Tensor) -> None:
    assert scaled.factor(tensor) is None
    assert words_of(load(save({"x": tensor}))["x"]) == words_of(tensor)


@pytest.mark.parametrize(
    ("payload", "dtype", "message"),
    [
        (b"", 0, "must be at most 1032 times its 0 bytes, got 16"),
        (b"abc", 0, "scale must lie in the 3 bytes left, got 4 bytes"),
        (struct.pack("<f", 1), 0, "width must lie in the 0 bytes left, got 1 bytes"),
        (struct.pack("<fB", 1, 3), 0, "width must be 1, 2 or 4, got 3"),
        (struct.pack("<fB", 0, 1), 0, "scale must be a normal number > 0 of finite products, got 0.0"),
        (struct.pack("<fB", -1, 1), 0, "scale must be a normal number > 0 of finite products, got -1.0"),
        (struct.pack("<fB", float("nan"), 1), 0, "scale must be a normal number > 0 of finite products, got nan"),
        (struct.pack("<fB", NORMAL / 2, 1), 0, "scale must be a normal number > 0 of finite products, got 5.877"),
        (struct.pack("<dB", 1e307, 1), F64, r"scale must be a normal number > 0 of finite products, got 1e\+307"),
        (struct.pack("<fB", 1, 1), 0, "first byte must lie in the payload: it is cut off"),
        (struct.pack("<fB", 1, 1) + b"\1\0", 0, "words of the coder must lie in the payload: it is cut off"),
        (b"abcde", F16, "a scaled tensor must be float32 or float64, got float16"),
        (b"abcde", BOOL, "a scaled tensor must be float32 or float64, got bool"),
    ],
)
def test_refused(payload: bytes, dtype: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"tensor 'x': {message}"):
        load(file(entry(payload, (4,), SCALED, dtype)))


def test_damaged() -> None:
    """Each flipped bit gives other values or a refusal, and nothing else."""
    data = torch.tensor([0.5, -1.5, 0.0, 1.0, 0.5, 0.5] * 4)
    found = scaled.factor(data)
    assert found
    payload = scaled.encode(*found, 6)
    assert torch.equal(load(file(entry(payload, (24,), SCALED)))["x"], data)
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert load(file(entry(bytes(flipped), (24,), SCALED)))["x"].isfinite().all()
        except ValueError as error:
            assert "tensor 'x': " in str(error)
