from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from crest_ext.models import create_model, multiply_adds

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


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"^MobileNetV1: width_mult must be at least 1/32, got 0\.01$"):
        create_model("mobilenet_v1", width_mult=0.01)
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
    model = create_model("mobilenet_v1", width_mult=float(width), num_classes=1001, folded=True, activation="relu6")
    model.load_state_dict(weights | {"fc.weight": weights["fc.weight"].flatten(1)})
    x = torch.rand(2, 3, pixels, pixels) * 2 - 1
    with torch.no_grad():
        got, expected = model.eval()(x), plain(weights, x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
