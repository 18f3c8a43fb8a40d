from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from crest_ext.models import MobileNetV1, create_model, multiply_adds

pytestmark = pytest.mark.usefixtures("one_thread")
# Parameters, and multiply-adds at 224, 192, 160 and 128 pixels: table 1 of the paper by the formulas of its section 3.
WIDTHS = {
    1.0: (4_231_976, (568_740_352, 418_121_728, 290_675_200, 186_400_768)),
    0.75: (2_585_560, (325_400_448, 239_273_472, 166_396_800, 106_770_432)),
    0.5: (1_331_592, (149_497_088, 109_970_432, 76_524_800, 49_160_192)),
    0.25: (470_072, (41_030_272, 30_212_608, 21_059_200, 13_570_048)),
}


def total(model: torch.nn.Module, pixels: int) -> int:
    return sum(multiply_adds(model, torch.zeros(1, 3, pixels, pixels)).values())


@pytest.mark.parametrize("width", WIDTHS)
def test_counts_of_the_paper(width: float) -> None:
    model = create_model("mobilenet_v1", width_mult=width)
    parameters, counts = WIDTHS[width]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert tuple(total(model, pixels) for pixels in (224, 192, 160, 128)) == counts


def test_shallow() -> None:
    model = create_model("mobilenet_v1", shallow=True)
    assert total(model, 224) / 1e6 == pytest.approx(307.3, abs=0.05)
    assert len(multiply_adds(model, torch.zeros(1, 3, 32, 32))) == 1 + 2 * 8 + 1


def test_small_images_keep_their_detail() -> None:
    shapes = []
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=10, small=True).eval()
    model.fc.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    last = model.get_submodule("block13")
    last.register_forward_hook(lambda _m, _x, y: shapes.append(y.shape))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(2, 256, 4, 4), (2, 256)]


def test_counting_leaves_the_model_as_it_was() -> None:
    model = create_model("mobilenet_v1", width_mult=0.25).train()
    model.fc.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total(model, 32)
    assert model.training
    assert not model.fc.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_resolution_is_kept_and_changes_no_weight() -> None:
    model = create_model("mobilenet_v1", width_mult=0.25, resolution=128)
    assert (model.resolution, model.input_shape) == (128, (3, 128, 128))
    assert sum(p.numel() for p in model.parameters()) == WIDTHS[0.25][0]
    assert sum(multiply_adds(model, torch.zeros(1, *model.input_shape)).values()) == WIDTHS[0.25][1][3]
    assert create_model("mobilenet_v1", width_mult=0.25).resolution == 224
    assert create_model("mobilenet_v1", width_mult=0.25, small=True).resolution == 32


def published(width: float = 0.25) -> dict[str, Tensor]:
    """Weights of another network in the layout of the published ones."""
    model = create_model("mobilenet_v1", width_mult=width, num_classes=5, folded=True, activation="relu6")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return state | {"fc.weight": state["fc.weight"][..., None, None]}


@pytest.mark.parametrize("width", [0.25, 0.75])
def test_from_published_finds_width_and_classes(width: float) -> None:
    weights, x = published(width), torch.rand(2, 3, 32, 32) * 2 - 1
    model = MobileNetV1.from_published(weights, resolution=160)
    assert (model.fc.out_features, model.resolution) == (5, 160)
    torch.testing.assert_close(model(x), plain(weights, x), rtol=1e-4, atol=1e-4)
    linear = MobileNetV1.from_published(weights | {"fc.weight": weights["fc.weight"].flatten(1)})
    assert torch.equal(linear(x), model(x))


def test_from_published_refuses() -> None:
    weights = published()
    without = {name: tensor for name, tensor in weights.items() if name != "block3.dw.bias"}
    for wrong, message in [
        ({}, "weights must hold stem.weight, got nothing"),
        (without, "weights must hold block3.dw.bias"),
        (weights | {"bn.weight": torch.ones(1)}, "weights must not hold bn.weight"),
        (
            weights | {"block1.pw.weight": torch.ones(17, 8, 1, 1)},
            r"block1.pw.weight of width 0.25 must have shape \(16, 8, 1, 1\), got \(17, 8, 1, 1\)",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^MobileNetV1: {message}$"):
            MobileNetV1.from_published(wrong)


def test_refuses() -> None:
    for width in (0.01, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"^MobileNetV1: width_mult must be 1/32 to 1024, got {width}$"):
            create_model("mobilenet_v1", width_mult=width)
    for classes in (0, -1):
        with pytest.raises(ValueError, match=rf"^MobileNetV1: num_classes must be at least 1, got {classes}$"):
            create_model("mobilenet_v1", num_classes=classes)
    for resolution in (0, 128.0):
        with pytest.raises(ValueError, match=r"^MobileNetV1: resolution must be an int of at least 1, got "):
            create_model("mobilenet_v1", resolution=resolution)
    with pytest.raises(ValueError, match=r"^MobileNetV1: activation must be one of relu, relu6, got 'gelu'$"):
        create_model("mobilenet_v1", activation="gelu")


def plain(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The graph of TensorFlow's authors, for even sizes, from the tensors alone."""
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    x = F.relu6(F.conv2d(F.pad(x, (0, 1, 0, 1)), w["stem.weight"], w["stem.bias"], 2))
    for i, stride in enumerate(strides, 1):
        weight, bias = w[f"block{i}.dw.weight"], w[f"block{i}.dw.bias"]
        x = F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        x = F.relu6(F.conv2d(x, weight, bias, stride, groups=len(weight)))
        x = F.relu6(F.conv2d(x, w[f"block{i}.pw.weight"], w[f"block{i}.pw.bias"]))
    return F.conv2d(F.avg_pool2d(x, x.shape[2:]), w["fc.weight"], w["fc.bias"]).flatten(1)


@pytest.mark.data
@pytest.mark.parametrize(("width", "pixels"), [("0.25", 128), ("0.5", 160)])
def test_published_weights(width: str, pixels: int) -> None:
    path = Path(os.environ["CREST_DATA"]) / "weights" / f"mobilenet_v1_{width}_{pixels}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    weights = load_file(path)
    model = MobileNetV1.from_published(weights, resolution=pixels)
    assert model.fc.weight.shape == (1001, 1024 * float(width))
    x = torch.rand(2, 3, pixels, pixels) * 2 - 1
    with torch.no_grad():
        got, expected = model.eval()(x), plain(weights, x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
