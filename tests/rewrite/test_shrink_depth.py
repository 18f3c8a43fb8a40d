"""Whole convolutions taken out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import shrink
from crest_ext.models import create_model
from crest_ext.models.cost import multiply_adds
from crest_ext.nn import ZeroConv2d
from shrinking import run, settle, zero_

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def resnet(*blocks: str) -> Any:
    """ResNet-20 with these blocks' second convolutions at zero."""
    model = settle(create_model("resnet20"))
    for name in blocks:
        zero_(model.get_submodule(f"{name}.conv2"), outs=range(len(model.get_submodule(f"{name}.conv2").weight)))
    return model


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_a_resnet(memory_format: torch.memory_format) -> None:
    model = resnet("layer1.1", "layer2.0", "layer3.2").to(memory_format=memory_format)
    x = X.to(memory_format=memory_format)
    small, report = shrink(model, x, depth=True, explain=True)
    assert convolutions(small) == convolutions(model) - 6
    torch.testing.assert_close(run(small, x), run(model, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(run(small, x[:, :, 3:, 5:]), run(model, x[:, :, 3:, 5:]), rtol=0, atol=1e-5)
    rows = {row.name: row for row in report.layers}
    assert str(rows["layer1.1.conv1"]) == "layer1.1.conv1: (16, 16, 3, 3) -> a constant"
    assert rows["layer2.0.conv2"].after == ()
    assert rows["layer2.1.conv1"].after == (32, 32, 3, 3)
    assert small.layer2[0].bn1.num_features == 1  # of what nothing reads
    saved = sum(count for name, count in multiply_adds(model, x).items() if "layer1.1" in name or "layer2.0" in name)
    saved += sum(count for name, count in multiply_adds(model, x).items() if "layer3.2" in name)
    assert sum(multiply_adds(small, x).values()) == sum(multiply_adds(model, x).values()) - saved


def test_copies_saves_exports_and_shrinks_again() -> None:
    small = shrink(resnet("layer1.0", "layer3.1"), X, depth=True).eval()
    expected = run(small, X)
    assert torch.equal(copy.deepcopy(small)(X), expected)
    other = shrink(resnet("layer1.0", "layer3.1"), X, depth=True).eval()
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(X), expected)
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(small, (X,), dynamic_shapes=({0: batch},)).module()
    x = torch.cat([X, X[:1]])
    torch.testing.assert_close(program(x), small(x))
    torch.testing.assert_close(shrink(small, X, depth=True)(X), expected)


def test_trains_on_with_its_optimizer() -> None:
    model = resnet("layer2.1")
    names = {p: name for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model(X).sum().backward()
    model.get_parameter("layer2.1.conv2.weight").grad.zero_()
    optimizer.step()
    small = shrink(model, X, depth=True, optimizer=optimizer)
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    assert trained == set(small.parameters())
    assert not trained & names.keys()
    assert optimizer.state.keys() == trained - {small.layer2[1].conv1.bias, small.layer2[1].conv2.bias}
    before = run(small, X)
    small.train()
    small(X).sum().backward()
    optimizer.step()
    assert not torch.equal(run(small, X), before)


class Steps(nn.Module):
    """Convolutions of odd sizes whose results are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.one = nn.Conv2d(6, 8, (3, 5), stride=2, padding=(2, 1), dilation=(2, 1), groups=2)
        self.two = nn.Conv2d(8, 8, 2, padding="same")
        self.beside = nn.Conv2d(6, 8, (3, 5), stride=2, padding=(2, 1), dilation=(2, 1))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.two(self.one(x))
        y += self.beside(x)
        return self.head(y).mean((-2, -1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("batched", [True, False])
def test_sizes_and_writes(batched: bool) -> None:
    model: Any = settle(Steps())
    zero_(model.two, outs=range(8))
    x = X[:, :, :9, :12] if batched else X[0, :, :9, :12]
    small = shrink(model, x, depth=True)
    assert isinstance(small.one, ZeroConv2d)
    assert isinstance(small.two, ZeroConv2d)
    torch.testing.assert_close(run(small, x), run(model, x))
    wider = X[..., :17, :11] if batched else X[0, :, :17, :11]
    torch.testing.assert_close(run(small, wider), run(model, wider))
    assert repr(small.two) == "ZeroConv2d(8, kernel_size=(2, 2), stride=(1, 1), pads=(1, 1), dilation=(1, 1))"


def test_constants_that_are_read() -> None:
    """Zero filters before padding: their bias cannot be folded into what reads them, so it stays, as an image."""
    model: Any = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU()))
    model.append(settle(nn.Conv2d(5, 2, 3, padding=1)))
    model[0].weight.data.zero_()
    small, report = shrink(model, X, depth=True, explain=True)
    assert [row.after for row in report.layers] == [(), (), (2, int((run(model[:3], X)[0, :, 0, 0] > 0).sum()), 3, 3)]
    torch.testing.assert_close(run(small, X), run(model, X))
    assert next(row.after for row in shrink(model, X, explain=True)[1].layers) == (1, 3, 3, 3)
