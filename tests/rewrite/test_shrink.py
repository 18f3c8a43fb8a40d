from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import shrink
from crest_ext.models import create_model
from crest_ext.nn import DepthwiseConv2d, mask_
from shrinking import check, conv_bn, run, settle, shapes, zero_

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lenet_5() -> None:
    model: Any = settle(create_model("lenet_5"))
    zero_(model.conv1, outs=range(5))  # constants other than 0: folded through the pooling, there is no padding
    zero_(model.conv2, outs=range(10, 17), ins=[18, 19])
    zero_(model.ip1, outs=range(100), ins=range(49 * 16, 50 * 16))  # all pixels of one channel,
    zero_(model.ip1, ins=range(48 * 16, 49 * 16 - 1))  # and all but one of another
    zero_(model.ip2, ins=range(490, 500))
    _, report = check(model, torch.randn(2, 1, 28, 28))
    assert shapes(report) == {"conv1": (13, 1), "conv2": (42, 13), "ip1": (390, 672), "ip2": (10, 390)}
    assert str(report["conv1"]) == "conv1: (20, 1, 5, 5) -> (13, 1, 5, 5)"


def test_lenet_300_100_masked() -> None:
    model: Any = settle(create_model("lenet_300_100"))
    for layer, outs in ((model.ip1, 120), (model.ip2, 60)):
        mask_(layer).mask[:outs] = False
    model.ip3.weight.data[:, 99] = 0
    small, report = check(model, torch.randn(4, 784))
    assert shapes(report) == {"ip1": (180, 784), "ip2": (39, 180), "ip3": (10, 39)}
    assert type(small.ip1) is nn.Linear
    assert str(report["ip3"]) == "ip3: (10, 100) -> (10, 39)"
    assert str(check(small, torch.randn(1, 784))[1]["ip3"]) == (
        "ip3: left as it is: 10 of 10 outputs stay: they are outputs of the model"
    )


@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_batch_norm(padding: int | str, mode: str) -> None:
    """Its beta goes on: folded if positive, where no zeros lie around it, and as nothing once ReLU has made it 0."""
    second = nn.Sequential(
        nn.Conv2d(8, 6, 3, padding=padding, padding_mode=mode, bias=False), nn.BatchNorm2d(6), nn.ReLU()
    )
    pixels = 49 if padding in (1, "same") else 25
    model: Any = settle(nn.Sequential(conv_bn(3, 8), second, nn.Flatten(), nn.Linear(6 * pixels, 5)))
    x = torch.randn(2, 3, 9, 9)
    first = model[0][0], model[0][1]
    zero_(first[0], outs=[0, 1, 2])
    first[1].running_mean.data[:3] = 0
    first[1].bias.data[:3] = torch.tensor([-1.0, 2.0, 3.0])
    first[1].weight.data[3] = 0  # constant, whatever the filter gives
    first[1].bias.data[3] = 0.5
    small, report = check(model, x)
    padded = mode == "zeros" and padding in (1, "same")
    left = 7 if padded else 4
    assert shapes(report)["0.0"] == (left, 3)
    assert shapes(report)["1.0"] == (6, left)
    assert report["0.0"].note == ("3 of 8 outputs stay: padding follows their constant" if padded else "")
    assert (small[1][0].bias is None) is padded
    assert small[0][1].num_features == len(small[0][1].running_var) == left


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(10, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


def test_residual_sums_go_as_one() -> None:
    model: Any = settle(Residual())
    zero_(model.stem[0], outs=[0, 1, 2, 3])
    zero_(model.conv2, outs=[2, 3, 4, 5])
    for norm in (model.stem[1], model.bn2):
        norm.running_mean[:] = 0
        norm.bias.data[:] = -1
    model.conv2.bias.data[:] = 0
    zero_(model.head, ins=[9])
    zero_(model.conv1, outs=[0, 1], bias=0.0, ins=[9])
    model.bn1.running_mean[:] = 0
    model.bn1.bias.data[0] = -1.0
    model.bn1.bias.data[1] = 1.0
    _, report = check(model, torch.randn(2, 3, 8, 8))
    # 2 and 3 are constant in both summands, 9 is read by none
    assert shapes(report) == {"stem.0": (7, 3), "conv1": (7, 7), "conv2": (7, 7), "head": (4, 7)}
    assert report["conv1"].note == "1 of 8 outputs stay: padding follows their constant"


def test_residual_branch_of_zeros_keeps_one_channel() -> None:
    model: Any = settle(Residual())
    zero_(model.conv2, outs=range(10))
    _, report = check(model, torch.randn(2, 3, 8, 8))
    assert shapes(report) == {"stem.0": (10, 3), "conv1": (1, 10), "conv2": (10, 1), "head": (4, 10)}
    assert report["conv1"].note == "1 of 8 outputs stay: one must stay"


@pytest.mark.parametrize("round_to", [None, 4])
def test_what_leads_to_a_constant_goes(round_to: int | None) -> None:
    """A branch that ends in a BatchNorm's beta keeps places, one or four, and not what would fill them."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv_bn(3, 10), nn.Conv2d(10, 4, 1)
            self.branch = nn.Sequential(conv_bn(10, 16, 1), conv_bn(16, 24, padding=1), conv_bn(24, 10, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.branch(x))

    model: Any = settle(Branch())
    zero_(model.branch[2][0], outs=range(10))
    small, report = check(model, torch.randn(2, 3, 8, 8), round_to=round_to)
    left = round_to or 1
    assert shapes(report) == {
        "stem.0": (10, 3),
        "head": (4, 10),
        "branch.0.0": (left, 10),
        "branch.1.0": (left, left),
        "branch.2.0": (10, left),
    }
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    assert small.branch[2][0].weight.grad.any()  # so that it can come back


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8, 1), conv_bn(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.merge = nn.Conv2d(19, 6, 1)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.merge(torch.cat([self.a(x), self.pool(x), self.b(x)], 1))
        return self.head(F.avg_pool2d(y, 2).reshape(len(x), -1))


def test_concatenation() -> None:
    model: Any = settle(Inception())
    zero_(model.a[0], outs=[0, 3])
    zero_(model.b[0], outs=[1])
    zero_(model.merge, outs=[5], ins=[8, 9, 17, 18])  # 8 and 9 are the image's
    _, report = check(model, torch.randn(2, 3, 8, 8))
    assert shapes(report) == {"a.0": (6, 3), "b.0": (5, 3), "merge": (5, 14), "head": (4, 80)}


def test_groups_go_whole_or_by_equal_numbers() -> None:
    model: Any = settle(
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3, groups=4), nn.Conv2d(16, 2, 1))
    )
    zero_(model[3], ins=[0, 1, 2, 3, 4, 8, 9])  # all of the first group, one of the second, two of the third
    zero_(model[0], outs=[3, 6, 7])  # one and two of the inputs of the second and the third; the fourth needs three
    _, report = check(model, torch.randn(2, 3, 9, 9))
    assert shapes(report) == {"0": (9, 3), "2": (12, 3), "3": (2, 12)}
    assert report["2"].note == "3 of 16 outputs stay: groups are of equal size"
    zero_(model[3], ins=[12, 15])
    zero_(model[0], outs=[11])
    small, report = check(model, torch.randn(2, 3, 9, 9))
    assert shapes(report) == {"0": (6, 3), "2": (9, 2), "3": (2, 9)}
    assert small[2].groups == 3


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int, ours: bool) -> None:
    deep = nn.Conv2d(8, 8 * multiplier, 3, padding=1, groups=8)
    deep = DepthwiseConv2d.from_conv2d(deep, "relu6") if ours else deep
    model: Any = settle(nn.Sequential(conv_bn(3, 8), deep, nn.ReLU(), nn.Conv2d(8 * multiplier, 5, 1)))
    zero_(model[0][0], outs=[0])  # constant 0: so is what the depthwise filters make of it, a constant
    model[0][1].running_mean[0] = 0.0
    model[0][1].bias.data[0] = -1.0
    zero_(model[1], outs=range(multiplier, 2 * multiplier))  # nothing reads channel 1
    zero_(model[3], ins=range(2 * multiplier, 3 * multiplier))  # nor what comes of channel 2
    zero_(model[3], ins=[7 * multiplier])
    small, report = check(model, torch.randn(2, 3, 9, 9))
    left = 4 if multiplier == 1 else 5  # of two outputs one is read: groups are of equal size
    assert shapes(report) == {"0.0": (left, 3), "1": (left * multiplier, 1), "3": (5, left * multiplier)}
    assert small[1].groups == left


@pytest.mark.parametrize("round_to", [None, 8])
def test_mobilenet(round_to: int | None) -> None:
    model = settle(create_model("mobilenet_v1", width_mult=0.25, num_classes=10))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            zero_(layer, outs=torch.rand(len(layer.weight)).lt(0.4).nonzero()[:, 0].tolist())
    small, report = check(model, torch.randn(2, 3, 32, 32), round_to=round_to)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert round_to is None or not any(len(m.weight) % 8 for m in small.modules() if isinstance(m, nn.Conv2d))
    assert all(row.after[0] < row.before[0] for name, row in report.items() if name.startswith("block9"))
    larger = torch.randn(1, 3, 64, 64)  # there most of the padding surrounds more than one pixel
    torch.testing.assert_close(run(small, larger), run(model, larger), rtol=0, atol=1e-4)


def test_resnet_20_shrinks_inside_its_blocks() -> None:
    model: Any = settle(create_model("resnet20"))
    for name, module in model.named_modules():
        if name.endswith("conv1"):
            zero_(module, outs=range(5))
        elif name.endswith("bn1"):
            module.running_mean.zero_()
            module.bias.data.fill_(-0.1)
    _, report = check(model, torch.randn(2, 3, 32, 32))
    for name, row in report.items():
        inside = name.endswith("conv1") and name != "conv1"
        assert row.after[0] == row.before[0] - (5 if inside else 0)
    assert str(report["conv1"]) == "conv1: left as it is: all its outputs are used"
    assert report["layer3.2.conv2"].after == (64, 59, 3, 3)


def test_transformer_layers_shrink_between_attentions() -> None:
    model: Any = nn.TransformerEncoderLayer(8, 2, 20, batch_first=True, norm_first=True)
    zero_(model.linear1, outs=[0, 1])
    small, found = shrink(model, torch.randn(2, 5, 8), explain=True)
    assert small.linear1.out_features == 20
    notes = {row.name: row.note for row in found.layers}
    assert notes["linear1"] == "is read by the fast path of its TransformerEncoderLayer"

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x)[0]
            return x + self.down(F.gelu(self.up(x)))

    mixer: Any = settle(Mixer())
    zero_(mixer.up, outs=[0, 1])
    zero_(mixer.down, ins=[19])
    _, report = check(mixer, torch.randn(2, 5, 8))
    assert report["up"].after == (17, 8)
    assert report["down"].after == (8, 17)


class Steps(nn.Module):
    """A small network in which `middle` stands between two layers."""

    def __init__(self, middle: Any, features: int = 6, **options: Any) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 6, 3, **options), middle
        self.last = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def hidden_write(x: Tensor) -> Tensor:
    x[:, 2:4].mul_(2)
    return x.mean((2, 3))


def unused_write(x: Tensor) -> Tensor:
    y = F.relu_(x[:, :, 1:])
    return x.mean((2, 3)) + y.mean((2, 3))


MIDDLES: dict[str, tuple[Any, int]] = {  # what stands between, and how many of 6 channels stay when 2 are constant
    "mean": (lambda x: x.mean(dim=(2, 3)), 4),
    "mean, kept": (lambda x: x.mean((-1, -2), keepdim=True).flatten(1), 4),
    "in place": (lambda x: x.relu_().sigmoid_().mul_(2).mean((2, 3)), 4),
    "view, in place": (lambda x: nn.Identity()(F.relu_(F.max_pool2d(x, 6).flatten(1))), 4),
    "same tensor twice": (lambda x: (x + x.relu_()).mean((2, 3)), 4),
    "maximum": (lambda x: x.amax((2, 3)), 4),
    "larger": (lambda x: F.interpolate(F.interpolate(x, size=9), scale_factor=2, mode="bilinear").mean((2, 3)), 4),
    "sum": (lambda x: x.sum((2, 3)), 6),  # of a constant depends on the image's size
    "permute": (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), 4),
    "view": (lambda x: F.adaptive_max_pool2d(x, 1).view(x.size(0), -1), 6),  # a kind of pooling that is not known
    "spatial slice": (lambda x: x[:, :, ::2, 1:].mean((2, 3)), 4),
    "pool": (lambda x: F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 2).mean((2, 3)), 4),
    "padded pool": (lambda x: F.avg_pool2d(x, 3, 2, 1).mean((2, 3)), 6),
    "padded pool of zeros": (lambda x: F.avg_pool2d(x - x, 3, 2, 1).mean((2, 3)), 4),
    "pool with windows cut off": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True).mean((2, 3)), 4),
    "pool by another number": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True, divisor_override=5).mean((2, 3)), 6),
    "padded": (lambda x: F.pad(x, (1, 0)).mean((2, 3)), 6),
    "reflected": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").mean((2, 3)), 4),
    "prelu": (nn.Sequential(nn.PReLU(6), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4),
    "sums of products": (lambda x: (x * x.sigmoid() - x / (x.exp() + 1)).mean((2, 3)), 4),
    "hidden write": (hidden_write, 6),
    "write to a part": (unused_write, 6),
    "channel slice": (lambda x: torch.cat([x[:, :3], x[:, 3:]], 1).mean((2, 3)), 6),
    "number in the code": (lambda x: x.mean((2, 3), keepdim=True).view(-1, 6), 6),
    "softmax": (lambda x: x.softmax(1).mean((2, 3)), 6),
    "group norm": (nn.Sequential(nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6),
    "gate": (lambda x: (x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)), 4),
    "gate by pixel": (lambda x: (x * x.mean(1, keepdim=True)).mean((2, 3)), 6),
    "no gradient": (torch.no_grad()(lambda x: x.mean((2, 3))), 4),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_is_followed_and_what_is_not(name: str) -> None:
    middle, left = MIDDLES[name]
    model: Any = settle(Steps(middle))
    zero_(model.first, outs=[1, 4])
    _, report = check(model, torch.randn(2, 3, 8, 8))
    assert shapes(report) == {"first": (left, 3), "last": (4, left)}


def test_a_constant_at_this_size_only_is_none() -> None:
    """On one pixel padded convolutions of constants look constant; on more they are not."""
    model: Any = settle(
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.AvgPool2d(3, 1, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )
    model.append(settle(nn.Linear(5, 2)))
    zero_(model[0], outs=range(4))
    small, report = check(model, torch.randn(2, 3, 1, 1))
    assert report["1"].after[0] == 5
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(run(small, x), run(model, x))


def test_every_output_of_a_layer_constant() -> None:
    model: Any = settle(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)))
    zero_(model[2], outs=range(6))
    _, report = check(model, torch.randn(4, 5))
    assert shapes(report) == {"0": (1, 5), "2": (1, 1), "4": (3, 1)}
    assert [row.note for row in report.values()] == [
        "1 of 7 outputs stay: one must stay",
        "1 of 6 outputs stay: one must stay",
        "3 of 3 outputs stay: they are outputs of the model",
    ]


def test_round_to() -> None:
    model: Any = settle(nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)))
    zero_(model[0], outs=range(9))
    zero_(model[2], outs=range(1))
    for round_to, (first, second) in {1: (11, 9), 4: (12, 10), 8: (16, 10), 64: (20, 10)}.items():
        _, report = check(model, torch.randn(2, 9), round_to=round_to)
        assert shapes(report) == {"0": (first, 9), "2": (second, first), "4": (3, second)}
    assert report["0"].note == "9 of 20 outputs stay: they make a multiple of 64"


def test_ignored_layers() -> None:
    model: Any = settle(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)))
    zero_(model[0], outs=[0])
    zero_(model[1], outs=[1])
    assert shapes(check(model, torch.randn(2, 5))[1]) == {"0": (6, 5), "1": (5, 6), "2": (3, 5)}
    _, report = check(model, torch.randn(2, 5), ignored_layers=["[2-9]"])
    assert shapes(report) == {"0": (6, 5), "1": (6, 6), "2": (3, 6)}
    assert report["1"].note == "1 of 6 outputs stay: 2 reads them, which is ignored"
    assert str(report["2"]) == "2: left as it is: is ignored"
