from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crest_ext import data
from crest_ext.models import MODELS, create_model

pytestmark = pytest.mark.usefixtures("one_thread")
# name, parameters, shape of a sample, number of classes
NETWORKS = [
    ("lenet_300_100", 266_610, (1, 28, 28), 10),
    ("lenet_5", 431_080, (1, 28, 28), 10),
    ("lenet_digits", 114_760, (1, 8, 8), 10),
    ("mlp_784_500_300", 545_810, (1, 28, 28), 10),
    ("convnet", 89_578, (3, 32, 32), 10),
    ("alexnet", 60_965_224, (3, 227, 227), 1000),
    ("resnet20", 269_722, (3, 32, 32), 10),
    ("dec3", 2_983_236, (1, 24, 24), 36),
    ("mobilenet_v1", 4_231_976, (3, 224, 224), 1000),
]


@pytest.mark.parametrize(("name", "parameters", "shape", "classes"), NETWORKS)
def test_parameters_and_shapes(name: str, parameters: int, shape: tuple[int, ...], classes: int) -> None:
    model = create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.rand(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", MODELS)
def test_input_shape_is_one_it_takes(name: str) -> None:
    with torch.device("meta"):  # no weights, no work
        model = create_model(name).eval()
        assert model(torch.empty(2, *model.input_shape)).shape[0] == 2


def test_arguments_reach_the_network() -> None:
    assert create_model("alexnet", classes=7).fc8.out_features == 7  # type: ignore[union-attr]


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(create_model("lenet_5").parameters())

    assert all(map(torch.equal, weights(1), weights(1)))
    assert not all(map(torch.equal, weights(1), weights(2)))


def test_caffe_xavier() -> None:
    layer = create_model("lenet_5").conv2
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    assert not layer.bias.any()
    bound = (3 / 500) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^create_model: name must be one of lenet_300_100, .*, got 'os\.system'$"):
        create_model("os.system")


# From the paper, to the last of 10,000 test images.
RELEASED = [
    ("lenet_300_100", "dns_lenet300100_original", 266_610, 228),
    ("lenet_300_100", "dns_lenet300100_sparse", 4_988, 199),
    ("lenet_5", "dns_lenet5_original", 431_080, 91),
    ("lenet_5", "dns_lenet5_sparse", 3_993, 91),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "file", "kept", "wrong"), RELEASED)
def test_released_weights_reach_the_papers_error(name: str, file: str, kept: int, wrong: int) -> None:
    path = Path(os.environ["CREST_DATA"]) / "weights" / f"{file}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    model = create_model(name).eval()
    model.load_state_dict(load_file(path))
    assert sum(int(p.count_nonzero()) for p in model.parameters()) == kept
    with torch.no_grad():
        errors = [int((model(x).argmax(1) != y).sum()) for x, y in data.Loader(data.load("mnist").test, 500)]
    assert sum(errors) == wrong
