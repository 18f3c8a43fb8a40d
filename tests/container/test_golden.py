"""Files of earlier writers still load, and what is written today is what was written when the format was set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from crest_ext.container import load_file, safe_open, save_file

FILES = Path(__file__).parent / "golden"
CODECS = {"deflate": {0, 1, 2}, "rans": {0, 1, 3}, "pools": {0, 1, 3}}  # without codec 3; version 1 with it; version 2


def tensors() -> dict[str, Tensor]:
    """Of every codec. No random generator: it may change."""
    i = torch.arange(2400)
    noise = (i + 1) * 0x9E3779B1 % 2**32
    noise = (noise ^ noise >> 15) * 0x45D9F3B % 2**32
    noise ^= noise >> 13
    word = ((noise >> 9) + (127 << 23)).to(torch.int32).view(torch.float32)  # in [1, 2)
    weight = torch.where(noise % 97 < 9, (word - 1.5) * (1 + i % 5), 0.0).reshape(40, 60)
    return {
        "weight": weight,
        "bias": weight[:, 7],
        "half": weight.half(),
        "bfloat": word.bfloat16(),
        "double": weight.double(),
        "dense": word,
        "mask": weight != 0,
        "steps": i,
        "labels": (noise >> 20) % 5,
        "codes": ((noise >> 20) % 11 - 5).to(torch.int8),
        "signed zeros": torch.where(noise % 53 < 9, -0.0, weight.flatten()),
        "constant": torch.full((64, 3), 0.1),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor(7),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "raw": noise[:64].to(torch.uint32),
    }


@pytest.mark.parametrize("name", CODECS)
def test_loads(name: str) -> None:
    expected, got = tensors(), load_file(FILES / f"{name}.crest")
    assert sorted(got) == sorted(expected)
    for key, tensor in expected.items():
        assert (got[key].dtype, got[key].shape) == (tensor.dtype, tensor.shape)
        if tensor.numel():
            assert torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (got[key], tensor))), key
    with safe_open(FILES / f"{name}.crest") as file:
        assert file.metadata() == {"made": "once"}
        assert {file.entry(key).codec for key in expected} == CODECS[name]


def test_writes_the_same_payloads(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.crest", {"made": "once"})
    with safe_open(FILES / "pools.crest") as golden, safe_open(tmp_path / "x.crest") as new:
        rans = [key for key in tensors() if golden.entry(key).codec == 3]
        assert len(rans) > 8
        for key in rans:
            assert new.entry(key) == golden.entry(key), key


def test_a_shared_stream_is_in_the_golden_file() -> None:
    with safe_open(FILES / "pools.crest") as file:
        streams = [file.entry(key).streams for key in tensors()]
    assert len(set(streams)) < len(streams)
