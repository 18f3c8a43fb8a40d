"""A save happens whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from crest_ext.container import load_file, save_file


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_old_file_survives_a_failure(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.crest"
    save_file({"x": torch.zeros(3)}, path)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(OSError, match="No space left on device"):
        save_file({"x": torch.ones(30000)}, path)
    monkeypatch.undo()
    assert torch.equal(load_file(path)["x"], torch.zeros(3))
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_tensors_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.crest"
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"^save_file: tensor 'y' must be a Tensor, got list$"):
        save_file({"x": torch.ones(3), "y": []}, path)  # type: ignore[dict-item]
    assert torch.equal(load_file(path)["x"], torch.zeros(3))


def test_link_keeps_pointing_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "x.crest", tmp_path / "link.crest"
    save_file({"x": torch.zeros(3)}, path)
    link.symlink_to(path)
    save_file({"x": torch.ones(3)}, link)
    assert link.is_symlink()
    assert torch.equal(load_file(path)["x"], torch.ones(3))


def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    from crest_ext.container import safe_open

    path = tmp_path / "x.crest"
    save_file({"x": torch.zeros(3)}, path)
    with safe_open(path) as file:
        save_file({"x": torch.ones(5)}, path)
        assert torch.equal(file.get_tensor("x"), torch.zeros(3))
    assert torch.equal(load_file(path)["x"], torch.ones(5))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_file({"x": torch.zeros(3)}, tmp_path / "none" / "x.crest")
