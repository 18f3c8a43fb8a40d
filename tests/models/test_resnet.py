from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crest_ext import data
from crest_ext.models import ResNet, create_model, multiply_adds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("depth", "parameters", "millions"), [(20, 269_722, 40.55), (56, 853_018, 125.49)])
def test_counts(depth: int, parameters: int, millions: float) -> None:
    model = create_model(f"resnet{depth}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    counts = multiply_adds(model, torch.zeros(1, 3, 32, 32))
    assert len(counts) == depth
    assert sum(counts.values()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_shortcuts_skip_pixels_and_add_empty_channels() -> None:
    block = create_model("resnet20").layer2[0]  # type: ignore[index]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    y = block.eval()(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("depth", [2, 21, 0, -4])
def test_refuses_a_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^ResNet: depth must be 6n \+ 2 with n >= 1, got {depth}$"):
        ResNet(depth)


@pytest.mark.data
@pytest.mark.parametrize(("depth", "right"), [(20, 9173), (32, 9263), (44, 9310)])
def test_published_weights(depth: int, right: int) -> None:
    path = Path(os.environ["CREST_DATA"]) / "weights" / f"resnet{depth}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    model = create_model(f"resnet{depth}").eval()
    model.load_state_dict(load_file(path))
    try:
        test = data.load("cifar10").test
    except ValueError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        hits = [int((model(x).argmax(1) == y).sum()) for x, y in data.Loader(test, 500)]
    assert sum(hits) == pytest.approx(right, abs=3)  # a tie may fall otherwise on another machine
