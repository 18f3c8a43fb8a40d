from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from crest_ext import Surgery, SurgeryConfig, materialize
from crest_ext.models import create_model
from crest_ext.nn import (
    DepthwiseConv2d,
    Masked,
    PackedSequential,
    SeparableConv2d,
    SparseConv2d,
    SparseLinear,
)
from crest_ext.rewrite import PackReport, measure, pack


def pruned() -> nn.Sequential:
    """A convolution, Linears with and without a ReLU behind them; about half of it dropped."""
    head = nn.Sequential(nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 8, bias=False), nn.Sequential(nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), head, nn.Linear(8, 3))
    surgery = Surgery(model, SurgeryConfig(0.0))
    surgery.step()
    surgery.finish()
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 1, 10, 10)


FORCED = {"sparse": (2.0, 1.0), "dense": (1.0, 2.0)}  # (dense, sparse) in seconds


@pytest.fixture(params=["measured", "sparse", "dense"])
def times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is measured, or always the same: each way a decision can go, on any machine."""
    if request.param in FORCED:
        monkeypatch.setattr(measure, "medians", lambda *_: FORCED[request.param])
    return str(request.param)


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "medians", lambda *_: FORCED["sparse"])


def kinds(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if not list(m.children())]


def test_computes_the_masked_model(times: str, x: Tensor) -> None:
    model = pruned()
    state = copy.deepcopy(model.state_dict())
    packed, report = pack(model, x, explain=True)
    for n in (1, 5, 30):
        batch = torch.randn(n, 1, 10, 10)
        torch.testing.assert_close(packed(batch), model(batch))
    assert any(isinstance(m, Masked) for m in packed.modules()) == (times == "dense")
    assert [layer.name for layer in report.layers] == ["0", "1", "3.0", "3.2", "4"]
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())  # not changed
    assert model.training and not packed.training
    assert not any(p.requires_grad for p in packed.parameters())
    if times == "dense":
        assert kinds(packed) == kinds(model)
        assert report.reason == "as it was: its masked layers are faster"
    if times == "sparse":
        assert isinstance(packed[0], SparseConv2d)
        assert kinds(packed[3:]) == ["SparseLinear", "Identity", "SparseLinear", "Identity", "SparseLinear"]
        layers = [layer for layer in packed.modules() if isinstance(layer, SparseLinear)]
        assert [layer.activation for layer in layers] == ["relu", "relu", "none"]


def test_dense_as_a_whole_wins_over_its_sparse_layers(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    calls = iter([*[(2.0, 1.0)] * 5, (1.0, 1.5), (1.5, 1.4)])
    monkeypatch.setattr(measure, "medians", lambda *_: next(calls))
    model = pruned()
    packed, report = pack(model, x, explain=True)
    assert kinds(packed) == kinds(materialize(model))
    assert (report.dense, report.packed, report.reason) == (1.0, 1.5, "dense, which is no slower")
    assert next(calls, None) is None


class Taps(nn.Module):
    """Calls the modules of an nn.Sequential one by one, and gives what lies between them."""

    def __init__(self, untraceable: bool) -> None:
        super().__init__()
        conv, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.features = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), last, nn.ReLU())
        self.untraceable = untraceable

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for layer in self.features:
            x = layer(x)
            taps.append(x.abs() if self.untraceable and x.sum() > 1e9 else x)
        return taps


@pytest.mark.parametrize("untraceable", [False, True])
def test_what_is_read_between_modules_stays(untraceable: bool, sparse_wins: None) -> None:
    model, x = Taps(untraceable).eval(), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        for layer in (model.features[0], model.features[3]):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.2)
        for dense in (False, True):
            packed = pack(model, x)
            assert any(isinstance(m, SparseConv2d) for m in packed.modules()) != dense
            for got, expected in zip(packed(x), model(x), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            model.features[0].weight.fill_(0.1)  # and in place behind a layer that stays dense
            model.features[3].weight.fill_(0.1)


def test_another_result_is_refused(sparse_wins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong with a packed model, the one that comes back computes what it should."""
    model, x = pruned(), torch.randn(5, 1, 10, 10)
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: x.new_ones(len(x), self.out_features))
    monkeypatch.setitem(pack.__globals__, "in_one_call", lambda packed, _: packed)
    packed, report = pack(model, x, explain=True)
    assert report.reason == "dense: packed, it computes something else"
    torch.testing.assert_close(packed(x), model(x))


class Reader(nn.Module):
    """Asks a layer for its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        nn.init.zeros_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.to(self.fc.weight.dtype)) + (0 if x.sum() > 0 else 1)


class Counter(nn.Module):
    """Keeps something from call to call."""

    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls, self.seen = nn.Linear(16, 16), 0, [0]
        nn.init.zeros_(self.fc.weight)
        self.register_buffer("h", torch.zeros(2, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.last = x
        self.h = F.relu(self.fc(x)) + 0.5 * self.h
        return self.h


class Dead(nn.Module):
    """Computes what only training takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        for conv in (self.conv, self.aux):
            nn.init.zeros_(conv.weight)

    def forward(self, x: Tensor) -> Any:
        y, aux = F.relu(self.conv(x)), x + self.aux(x)
        return (y, aux) if self.training else y


class Words(nn.Module):
    """Its modules' names are words of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"in": nn.Linear(16, 16), "out": nn.Linear(16, 16)})
        for layer in self.layers.values():
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers["out"](F.relu(self.layers["in"](x)))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        for layer in (self.fc, self.last):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = F.relu(self.fc(x))
        return self.last(x if y is None else x + y)


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 9, 9)])
def test_models_of_all_kinds(shape: tuple[int, ...], sparse_wins: None) -> None:
    x = torch.randn(shape)
    for model in [Dead()] if len(shape) == 4 else [Reader(), Counter(), Words(), Optional()]:
        args = (x, x) if isinstance(model, Optional) else (x,)
        packed, given = pack(model.eval(), args), copy.deepcopy(model)
        for same in (packed, model):  # as if neither had been run
            assert not hasattr(same, "last") or isinstance(same, Optional)
        for now in (args, args, (x,)):
            torch.testing.assert_close(packed(*now), given(*now))
        if isinstance(model, Counter):
            assert (packed.calls, packed.seen) == (given.calls, given.seen) == (3, [0, 1, 2, 3])
        with torch.inference_mode():
            packed = pack(model, args)
        packed.load_state_dict(packed.state_dict())
        torch.testing.assert_close(packed(*args), copy.deepcopy(model)(*args))


def test_a_model_that_asks_for_weights_stays_dense(sparse_wins: None) -> None:
    _, report = pack(Reader(), torch.randn(2, 16), explain=True)
    assert report.reason.startswith("dense: packed, it raises AttributeError: 'SparseLinear' object has no attribute")


def test_what_torch_pruned(sparse_wins: None) -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.randn(3, 64)
    prune.l1_unstructured(model[0], "weight", 0.9)
    expected = model(x)  # which leaves a weight that deepcopy refuses
    packed = pack(model, x)
    assert isinstance(packed[0], SparseLinear)
    assert packed[0].density == pytest.approx(0.1, abs=0.01)
    torch.testing.assert_close(packed(x), expected)
    assert prune.is_pruned(model)


def test_the_report(sparse_wins: None, x: Tensor) -> None:
    model = pruned()
    model[4] = nn.Linear(8, 3)
    _, report = pack(model, x, explain=True)
    assert isinstance(report, PackReport)
    conv, pool, first, second, last = report.layers
    assert (conv.rows, conv.kernel) == (5 * 10 * 10, "sparse")
    assert (pool.rows, pool.kernel, pool.density) == (5 * 5 * 5, "quick", 1.0)
    assert (first.rows, first.kernel, first.dense, first.sparse) == (5, "sparse, relu", 2.0, 1.0)
    assert first.density == pytest.approx(model[3][0].mask.float().mean().item())
    assert (second.kernel, second.reason) == ("sparse, relu", "measured 2.0 times as fast")
    assert (last.kernel, last.density, last.dense, last.reason) == ("dense", 1.0, 0.0, "keeps too many weights")
    lines = str(report).splitlines()
    assert len(lines) == 7
    row = ["3.0", "5", f"{first.density:.3f}", "sparse,", "relu", "2000.000", "1000.000"]
    assert lines[3].split() == row + first.reason.split()
    assert lines[-1].endswith("packed, 2.0 times as fast")


def test_without_anything_to_pack() -> None:
    packed, report = pack(nn.Sequential(nn.AvgPool2d(2)), torch.randn(1, 1, 5, 5), explain=True)
    assert (report.layers, report.reason) == ((), "no layer is faster packed")
    assert kinds(packed) == ["AvgPool2d"]


def test_a_layer_by_itself(sparse_wins: None) -> None:
    layer = nn.Linear(30, 20)
    layer.weight.data.mul_(torch.rand(20, 30) < 0.3)
    packed = pack(layer, torch.randn(2, 30))
    assert isinstance(packed, SparseLinear)
    x = torch.randn(3, 30)
    torch.testing.assert_close(packed(x), layer(x))


class Awkward(nn.Module):
    """What must not be packed, or not fused."""

    def __init__(self) -> None:
        super().__init__()
        linear = [nn.Linear(16, 16) for _ in range(6)]
        for layer in linear:
            layer.weight.data.mul_(torch.rand(16, 16) < 0.3)
        self.shared, self.hooked, self.unused, self.bfloat, self.kept, self.tapped = linear
        self.relu = nn.ReLU()
        self.twice = nn.Sequential(self.shared, self.relu, self.shared)
        self.hooked.register_forward_hook(lambda *call: call[2] + 1)
        self.bfloat.bfloat16()
        self.tap = nn.Sequential(self.tapped, nn.ReLU())
        self.kept_relu = nn.ReLU()
        self.pair = nn.Sequential(self.kept, self.kept_relu)
        self.kept_relu.register_forward_hook(lambda *call: call[2] * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hooked(self.twice(x))
        x = x + self.bfloat(x.bfloat16()).float()
        x = x + self.tap[0](x)  # not through the Sequential: its ReLU does not follow
        return self.pair(x)


def test_what_stays_dense_or_unfused(sparse_wins: None) -> None:
    model = Awkward()
    x = torch.randn(4, 16)
    packed, report = pack(model, x, explain=True)
    torch.testing.assert_close(packed(x), model(x))
    found = {layer.name: (layer.kernel, layer.reason) for layer in report.layers}
    faster = "measured 2.0 times as fast"
    assert found == {
        "shared": ("sparse", faster),
        "hooked": ("dense", "has hooks"),
        "unused": ("dense", "is not called"),
        "bfloat": ("dense", "is not float32 on the CPU"),
        "kept": ("sparse", faster),
        "tapped": ("sparse", faster),
    }
    assert packed.twice[0] is packed.twice[2] is packed.shared
    assert isinstance(packed.shared, SparseLinear)


class Residual(nn.Module):
    """What torch.fx can trace: convolutions with BatchNorms and ReLUs behind them, in and out of Sequentials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.used_twice, self.bn3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.tail = nn.Sequential(nn.Conv2d(8, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.odd = nn.Conv2d(4, 4, 2, padding="same")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data.mul_(torch.rand_like(module.weight) < 0.4)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = x + self.bn2(self.conv2(x))
        y = self.used_twice(x)
        return self.odd(self.tail(self.bn3(y) + y))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_folds_batch_norms_and_fuses_relus(times: str) -> None:
    model = Residual().eval()
    x = torch.randn(2, 3, 12, 12)
    packed, report = pack(model, x, explain=True)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert type(model.bn1) is nn.BatchNorm2d
    if times == "sparse":
        kernels = {layer.name: layer.kernel for layer in report.layers}
        relu = "sparse, relu"
        assert kernels == {
            "conv1": relu,
            "conv2": "sparse",
            "used_twice": "sparse",
            "tail.0": relu,
            "tail.3": "sparse",
            "odd": "dense",
        }
        assert report.layers[-1].reason == "pads one side more than the other"
        norms = [name for name, m in packed.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms == ["bn3"]


class Branching(Residual):
    """What torch.fx cannot trace: only its Sequential is looked into."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 1e9 else 2 * x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_model_that_cannot_be_traced(sparse_wins: None) -> None:
    model = Branching().eval()
    x = torch.randn(2, 3, 12, 12)
    packed = pack(model, x)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert type(packed.bn1) is nn.BatchNorm2d
    assert [type(m) for m in packed.tail] == [SparseConv2d, nn.Identity, nn.Identity, SparseConv2d]


def test_an_image_without_a_batch(sparse_wins: None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].weight.data.mul_(torch.rand(4, 3, 3, 3) < 0.3)
    _, report = pack(model, torch.randn(3, 8, 8), explain=True)
    assert report.layers[0].reason == "gets an image without a batch"


@pytest.mark.parametrize("inplace", [False, True])
def test_several_arguments_and_relu_in_place(sparse_wins: None, inplace: bool) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=inplace))
            self.body[0].weight.data.mul_(torch.rand(16, 16) < 0.3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.body(x) + y

    model, args = Two(), (torch.randn(3, 16), torch.randn(3, 16))
    packed, report = pack(model, args, explain=True)
    assert report.layers[0].kernel == "sparse, relu"
    torch.testing.assert_close(packed(*args), model(*args))


def test_half_precision_values(sparse_wins: None, x: Tensor) -> None:
    model = pruned()
    packed = pack(model, x, dtype=torch.bfloat16)
    layers = [m for m in packed.modules() if isinstance(m, SparseLinear)]
    assert layers and all(layer.values.dtype == torch.bfloat16 for layer in layers)
    torch.testing.assert_close(packed(x), model(x), rtol=0.02, atol=0.02)


def test_is_an_ordinary_module(sparse_wins: None, x: Tensor) -> None:
    model = pruned()
    packed = pack(model, x)
    expected = packed(x)
    assert torch.equal(copy.deepcopy(packed)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(x), expected)
    other = pack(pruned(), x)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(x), expected)
    torch.testing.assert_close(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    for n in (1, 3, 20):
        batch = torch.randn(n, 1, 10, 10)
        torch.testing.assert_close(program.module()(batch), model(batch))


def mobilenet(activation: str = "relu") -> nn.Sequential:
    """With a depthwise layer of torch's own behind it."""
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=5, shallow=True, activation=activation)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    plain = nn.Conv2d(5, 5, 3, padding=1, groups=5)
    return nn.Sequential(model, nn.Unflatten(1, (5, 1, 1)), plain, nn.ReLU6()).eval()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_separable(activation: str, sparse_wins: None) -> None:
    """A depthwise convolution and a pointwise one, with the BatchNorms and activations behind them, in one pass."""
    whole, x = mobilenet(activation), torch.rand(2, 3, 32, 32)
    packed, report = pack(whole, x, explain=True)
    torch.testing.assert_close(packed(x), whole(x), rtol=1e-4, atol=1e-4)
    layers = {layer.name: layer for layer in report.layers}
    first, second = layers["0.block3.dw.0"], layers["0.block3.pw.0"]
    assert (first.kernel, first.reason) == (f"separable, {activation}", "measured 2.0 times as fast")
    assert (second.kernel, second.reason) == (f"separable, {activation}", "in one pass with 0.block3.dw.0")
    assert (layers["2"].kernel, layers["2"].reason) == ("depthwise, relu6", "measured 2.0 times as fast")
    # All in one call, with what makes its x and the padding in front.
    stem = layers["0.stem.0"]
    assert (stem.kernel, stem.reason) == (f"stem, {activation}", "measured 2.0 times as fast")
    (row,) = (m for m in packed.modules() if isinstance(m, PackedSequential))
    assert kinds(row) == ["StemConv2d", *["SeparableConv2d"] * 8, "ChannelMean", "Linear"]
    assert len(row.runs) == 1
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))
    torch.testing.assert_close(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), packed(x))


@pytest.mark.parametrize("hooked", [False, True])
def test_a_stem_and_its_padding(hooked: bool, sparse_wins: None) -> None:
    """To planes; the padding goes along, unless it has a hook."""
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU6()).eval()
    seen: list[Any] = []
    if hooked:
        model[0].register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3, 9, 8)
    packed, report = pack(model, x, explain=True)
    (layer,) = report.layers
    assert layer.kernel == "stem, relu6"
    assert kinds(packed) == ["ZeroPad2d" if hooked else "Identity", "StemConv2d", "Identity", "Identity"]
    seen.clear()
    out = packed(x)
    assert out.is_contiguous() and seen == [1] * hooked
    torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)


def test_separable_layers_are_measured_in_their_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the first, whose x a dense convolution can make so."""
    last, forward = [], SeparableConv2d.forward

    def measured(*functions: Callable[[], Any]) -> tuple[float, float]:
        for function in functions:
            function()
        return 2.0, 1.0

    def spy(self: SeparableConv2d, x: Tensor) -> Tensor:
        last.append(x.is_contiguous(memory_format=torch.channels_last))
        return forward(self, x)

    monkeypatch.setattr(measure, "medians", measured)
    monkeypatch.setattr(SeparableConv2d, "forward", spy)
    pack(mobilenet(), torch.rand(2, 3, 32, 32))
    assert len(last) >= 8
    assert all(last)


def test_hooks_of_what_holds_modules_are_called(sparse_wins: None) -> None:
    whole, x, seen = mobilenet(), torch.rand(2, 3, 32, 32), []
    whole[0].block3.register_forward_hook(lambda *_: seen.append("block3"))
    packed = pack(whole, x)
    seen.clear()
    torch.testing.assert_close(packed(x), whole(x), rtol=1e-4, atol=1e-4)
    assert seen == ["block3"] * 2
    assert type(packed[0].block3.dw[0]) is SeparableConv2d


def test_what_a_separable_layer_reads_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the format that it takes, and the activation between them in place."""
    whole, x = mobilenet(), torch.rand(2, 3, 32, 32)
    seconds = iter([*[(2.0, 1.0)] * 9, (1.0, 2.0), (2.0, 1.0)])  # that plain layer, the blocks, the stem, the whole
    monkeypatch.setattr(measure, "medians", lambda *_: next(seconds))
    packed = pack(whole, x)
    assert next(seconds, None) is None
    torch.testing.assert_close(packed(x), whole(x), rtol=1e-4, atol=1e-4)
    assert packed.get_submodule("0.stem.0").weight.is_contiguous(memory_format=torch.channels_last)
    (row,) = (m for m in packed.modules() if isinstance(m, PackedSequential))
    assert kinds(row) == ["ReLU", *["SeparableConv2d"] * 8, "ChannelMean", "Linear"]
    assert row[0].inplace and not whole[0].stem_activation.inplace


def test_depthwise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one pass is no faster: only what is behind the depthwise convolution runs in its pass."""
    whole, x = mobilenet(), torch.rand(2, 3, 32, 32)
    # that plain layer, the eight blocks, the stem, the whole
    calls = iter([(2.0, 1.0), *[(1.0, 2.0)] * 9, (2.0, 1.0)])
    monkeypatch.setattr(measure, "medians", lambda *_: next(calls))
    packed, report = pack(whole, x, explain=True)
    assert next(calls, None) is None
    torch.testing.assert_close(packed(x), whole(x), rtol=1e-4, atol=1e-4)
    kernels = {layer.name: (layer.kernel, layer.reason) for layer in report.layers}
    assert kernels["0.stem.0"] == ("dense", "keeps too many weights")
    assert kernels["0.block3.dw.0"] == ("depthwise, relu", "is a DepthwiseConv2d")
    assert kernels["0.block3.pw.0"] == ("dense", "keeps too many weights")
    block = packed[0].block3
    assert [type(m) for m in block.dw] == [DepthwiseConv2d, nn.Identity]
    assert type(block.dw_activation) is nn.Identity
    assert type(block.pw[1]) is nn.Identity  # folded
    assert type(block.pw_activation) is nn.ReLU and block.pw_activation.inplace


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5", "resnet20"])
def test_networks(name: str, times: str) -> None:
    model = create_model(name).eval()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.data.mul_(torch.rand_like(module.weight) < 0.05)
    x = torch.rand(7, 3, 32, 32) if name == "resnet20" else torch.rand(7, 1, 28, 28)
    packed = pack(model, x)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)


def test_medians_run_both_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(measure, "BUDGET", 0.0)
    a, b = measure.medians(lambda: called.append(1), lambda: called.append(F))
    assert called == [1, F] * 6
    assert a > 0 and b > 0
