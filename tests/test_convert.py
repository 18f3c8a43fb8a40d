"""`crest convert`: what goes through comes out bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open as open_safetensors
from torch import Tensor, nn
from typer.testing import CliRunner

from crest_ext import cli
from crest_ext.container import load_file, safe_open, save_file
from crest_ext.container.index import DTYPES

NOT_THERE = {torch.float8_e4m3fn, torch.float8_e5m2}  # in torch.load(weights_only=True) of the oldest torch


def crest(*args: object) -> Any:
    return CliRunner().invoke(cli.app, ["convert", *map(str, args)])


def ok(*args: object) -> Any:
    result = crest(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(*args: object) -> str:
    result = crest(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr.removeprefix("crest: ").strip()


def tensors() -> dict[str, Tensor]:
    """Every dtype, every bit pattern, and shapes with 0 and without dimensions."""
    generator = torch.Generator().manual_seed(0)
    made = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3), "nan": torch.tensor([float("nan"), -0.0, 1e-45])}
    for dtype in DTYPES.values():
        top = 2 if dtype == torch.bool else 256
        raw = torch.randint(0, top, (40, 30 * dtype.itemsize), dtype=torch.uint8, generator=generator)
        made[str(dtype)] = raw.view(dtype)
    return made


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.numel():
            parts = (t.contiguous().reshape(-1).view(torch.uint8) for t in (got[name], tensor))
            assert torch.equal(*parts), name


def test_from_safetensors_and_back(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / name for name in ("a.safetensors", "b.crest", "c.safetensors", "d.crest"))
    safetensors.torch.save_file(tensors(), a, {"format": "pt", "k": "v"})
    found = ok(a, b)
    assert (found["source_bytes"], found["target_bytes"]) == (a.stat().st_size, b.stat().st_size)
    assert (found["tensors"], found["elements"]) == (len(tensors()), sum(t.numel() for t in tensors().values()))
    same(load_file(b), tensors())
    with safe_open(b) as file:
        assert file.metadata() == {"format": "pt", "k": "v"}
    ok(b, c)
    same(safetensors.torch.load_file(c), tensors())
    with open_safetensors(c, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}
    ok(c, d)
    assert d.read_bytes() == b.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.crest", "c.safetensors", "d.crest"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_from_torch(suffix: str, tmp_path: Path) -> None:
    expected = {name: t for name, t in tensors().items() if t.dtype not in NOT_THERE}
    torch.save(expected, tmp_path / f"a{suffix}")
    ok(tmp_path / f"a{suffix}", tmp_path / "a.crest")
    same(load_file(tmp_path / "a.crest"), expected)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / f"a{suffix}")
    ok(tmp_path / f"a{suffix}", tmp_path / "a.crest")
    same(load_file(tmp_path / "a.crest"), dict(model.state_dict()))


def test_tables_for_people(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(5000)}, tmp_path / "a.crest")
    result = crest(tmp_path / "a.crest", tmp_path / "a.safetensors")
    assert result.exit_code == 0
    assert "5,000" in result.stdout


class Code:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out.crest")
    save_file({"old": torch.zeros(1)}, out)
    torch.save({"x": Code()}, "a.pt")
    assert fails("a.pt", out).startswith("a.pt: must be a torch file of weights alone: ")
    assert not Path("ran").exists()
    torch.save([torch.zeros(1)], "b.pt")
    assert fails("b.pt", out) == "b.pt: must hold a dict of tensors, got list"
    torch.save({"x": torch.zeros(1), "epoch": 3}, "c.pt")
    assert fails("c.pt", out) == "save_file: tensor 'epoch' must be a Tensor, got int"
    Path("d.safetensors").write_bytes(b"12345678{")
    assert fails("d.safetensors", out).startswith("d.safetensors: must be a safetensors file: ")
    Path("e.crest").write_bytes(b"x")
    assert fails("e.crest", "e.safetensors").startswith("e.crest: header: a .crest file must start with")
    assert fails("a.onnx", out) == "convert: source must end in .crest, .safetensors, .pt, .pth, .bin, got a.onnx"
    assert fails(out, "a.pt") == "convert: target must end in .crest or .safetensors, got a.pt"
    assert list(load_file(out)) == ["old"]
    assert not Path("e.safetensors").exists()
