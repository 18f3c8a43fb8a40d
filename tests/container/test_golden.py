"""Files of earlier writers still load, and what is written today is what was written when the format was set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codec import reader
from crest_ext.container import load_file, pools, safe_open, save, save_file

FILES = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[2] / "docs" / "format.md"
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
        pairs = [[replace(file.entry(key).streams[0], offset=0) for file in (golden, new)] for key in tensors()]
        same = [(old, made) for old, made in pairs if old.codec == made.codec == 3 and old.numel == made.numel]
        assert len(same) > 6  # others are mixed now, or share streams with others than before
        assert all(old == made for old, made in same)


def test_a_shared_stream_is_in_the_golden_file() -> None:
    with safe_open(FILES / "pools.crest") as file:
        streams = [file.entry(key).streams for key in tensors()]
    assert len(set(streams)) < len(streams)


def words_of(tensor: Tensor) -> list[int]:
    size = tensor.dtype.itemsize
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def check_file(path: Path, golden: Path, expected: dict[str, Tensor], codec: int) -> None:
    """All tensors of a file are in one codec and its streams in the golden file; so says a second reader too."""
    with safe_open(path) as got, safe_open(golden) as old:
        assert {name: got.entry(name).codec for name in got.keys()} == dict.fromkeys(sorted(expected), codec)  # noqa: SIM118
        assert all(got.entry(name) == old.entry(name) for name in expected)
    found = load_file(path)
    _, plain = reader.read_file(path.read_bytes(), DOCS.read_text().split("```")[1].replace("\n", "").encode())
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert words_of(found[name]) == plain[name][2] == words_of(tensor), name


@pytest.mark.parametrize("block", [1 << 21, 1000])
def test_a_second_reader(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/format.md says all that it takes, the dictionary too."""
    monkeypatch.setattr(pools, "BLOCK", block)
    monkeypatch.setattr(pools, "SMALL", min(block, pools.SMALL))
    dictionary = DOCS.read_text().split("```")[1].replace("\n", "").encode()
    for data in (save(tensors(), {"made": "once"}), save({}), (FILES / "pools.crest").read_bytes()):
        metadata, found = reader.read_file(data, dictionary)
        assert metadata == ({"made": "once"} if found else {})
        for name, tensor in tensors().items() if found else ():
            dtype, shape, words = found[name]
            assert (dtype, shape) == (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            assert words == words_of(tensor), name
