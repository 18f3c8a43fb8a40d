"""bench/papers/mimic.py: what is interrupted goes on to the same end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext import data, train
from crest_ext.augment import standardize
from crest_ext.methods import Ensemble
from papers import mimic as bench

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPE = torch.float32


class OfBytes(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1) / 255)


@pytest.fixture
def splits() -> dict[str, data.Split]:
    x, y = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(64) % 10
    return {"bytes": data.Split(x, y)} | {n: data.Split(standardize(x), y) for n in ("validation", "test")}


@pytest.fixture
def cache(splits: dict[str, data.Split], tmp_path: Path) -> train.LogitCache:
    teachers = Ensemble([OfBytes(3072, 10)])
    made = train.LogitCache(tmp_path / "cache", *splits["bytes"], teachers, passes=3, batch_size=16)
    made.write()
    return made


@pytest.mark.parametrize("on", ["logits", "labels"])
def test_an_interrupted_training_ends_like_another(
    cache: train.LogitCache, splits: dict[str, data.Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    saved: list[dict[str, Any]] = []
    save = torch.save

    def keep(state: dict[str, Any], path: Path) -> None:
        saved.append({name: value.clone() for name, value in state["student"].items()})
        save(state, path)
        if len(saved) == 4:  # after the first pass of the second training
            raise InterruptedError

    monkeypatch.setattr(torch, "save", keep)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    expected = bench.fit("mlp", on, cache, splits, whole, DTYPE)
    with pytest.raises(InterruptedError):
        bench.fit("mlp", on, cache, splits, halves, DTYPE)
    found = bench.fit("mlp", on, cache, splits, halves, DTYPE)
    assert len(saved) == 3 + 1 + 2
    assert all(torch.equal(saved[2][name], value) for name, value in saved[-1].items())
    assert (found.params, found.validation, found.test) == (expected.params, expected.validation, expected.test)
    assert [path.name for path in halves.iterdir()] == [f"mlp_{on}.json"]
    assert bench.fit("mlp", on, cache, splits, halves, DTYPE) == found
    assert len(saved) == 6  # what is finished is not trained again


def test_the_table_has_a_row_a_pair_and_states_its_budget() -> None:
    pairs = {
        "conv1": (bench.Run(999_210, 0.7, 0.6512, 60), bench.Run(999_210, 0.7, 0.6401, 60)),
        "conv2": (bench.Run(1_000_806, 0.7, 0.7, 90), bench.Run(1_000_806, 0.7, 0.71, 90)),
    }
    teachers = {"ResNet-20": 0.9173, "ensemble": 0.94, "augmented": 0.9044}
    args = argparse.Namespace(images=40_000, passes=5, dtype="bfloat16")
    table = bench.section(pairs, teachers, args)
    assert table["rows"] == [
        ["1 conv, bottleneck", "999,210", "65.12", "64.01", "+1.11", "84.5", "2.0"],
        ["2 conv", "1,000,806", "70.00", "71.00", "-1.00", "87.9", "3.0"],
        ["teachers, mean of logits", "", "94.00", "", "", "93.8", ""],
    ]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert table["command"] == "python bench/papers/mimic.py --images 40000 --passes 5 --dtype bfloat16"
    assert any(note.startswith("5 passes over 40,000 augmented images") for note in table["notes"])
