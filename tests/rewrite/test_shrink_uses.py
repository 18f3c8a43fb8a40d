from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from crest_ext import shrink
from crest_ext.models import create_model
from crest_ext.nn import mask_
from shrinking import check, conv_bn, run, settle, shapes, zero_

pytestmark = pytest.mark.usefixtures("one_thread")


class Odd(nn.Module):
    """Layers that cannot be cut by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.twice, self.tied = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.one.weight
        self.idle, self.own = nn.Linear(6, 6), type("Own", (nn.Linear,), {})(6, 6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.plain, self.elsewhere, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.tied(self.one(self.twice(torch.tanh(self.twice(x))))))
        return self.last(self.plain(self.normed(x)) * self.elsewhere.bias)


def test_layers_that_cannot_be_cut() -> None:
    model: Any = settle(Odd())
    for layer in (model.one, model.twice, model.own, model.plain):
        zero_(layer, outs=[0], ins=[1])
    _, report = check(model, torch.randn(2, 6))
    assert shapes(report) == dict.fromkeys(report, (6, 6))
    notes = {name: row.note for name, row in report.items()}
    assert notes["one"] == notes["tied"] == "shares a parameter"
    assert notes["twice"] == "is used more than once"
    assert notes["idle"] == notes["elsewhere"] == "is not run, or not by itself"
    assert notes["own"] == "is a Own"
    assert notes["normed"] == "is a ParametrizedLinear"
    assert notes["plain"] == "6 of 6 outputs stay: they go through mul"
    assert str(check(nn.Linear(3, 2), torch.ones(1, 3))[1][""]) == (
        ": left as it is: 2 of 2 outputs stay: they are outputs of the model"
    )


class Kinds(nn.Module):
    """Layers of kinds that are not cut, and parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.token = nn.Embedding(9, 8), nn.Parameter(torch.randn(8))
        self.conv1d = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 6, 1, bias=False))
        self.conv, self.norm, self.prelu = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.PReLU(6)
        self.up, self.group_norm = nn.ConvTranspose2d(6, 4, 2, 2), nn.GroupNorm(2, 4)
        self.attention, self.lstm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LSTM(4, 4, batch_first=True)
        self.layer_norm, self.idle = nn.LayerNorm(4), nn.Bilinear(2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1d((self.embedding(x) + self.token).transpose(1, 2))[..., None]
        x = self.group_norm(self.up(self.prelu(self.norm(self.conv(x))))).flatten(2).transpose(1, 2)
        return self.layer_norm(self.lstm(self.attention(x, x, x)[0])[0])


def test_rows_of_other_kinds() -> None:
    model: Any = settle(Kinds())
    zero_(model.conv, outs=[0, 1])
    _, report = check(model, torch.randint(9, (2, 5)))
    assert {name: row.note for name, row in report.items()} == {
        "": "is a Kinds",
        "embedding": "is a Embedding",
        "conv1d": "is a ParametrizedConv1d",
        "conv": "2 of 6 outputs stay: a ConvTranspose2d follows their constant",
        "up": "4 of 4 outputs stay: they go through group_norm",
        "attention": "is a MultiheadAttention",
        "attention.out_proj": "is a NonDynamicallyQuantizableLinear",
        "lstm": "is a LSTM",
        "idle": "is a Bilinear",
    }
    assert all(row.before == row.after for row in report.values())
    assert (report["embedding"].before, report["conv1d"].before, report[""].before) == ((9, 8), (6, 8, 1), (8,))


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, pair: tuple[Tensor, float]) -> dict[str, Any]:
            self.calls += 1
            h = self.a(x) + self.b(pair[0]) * pair[1]
            y = self.c(h)
            return {"y": y, "positive": y > 0, "calls": 2 * self.calls, "none": None}

    model: Any = settle(Two())
    zero_(model.c, ins=[0, 5])
    x = (torch.randn(2, 4), (torch.randn(2, 5), 2.0))
    small = shrink(model, x)
    assert small.a.out_features == small.b.out_features == small.c.in_features == 4
    assert model.calls == small.calls == 0
    torch.testing.assert_close(small(*x)["y"], model(*x)["y"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    model: Any = settle(nn.Sequential(conv_bn(3, 8), nn.Flatten(), nn.Linear(8 * 16, 5))).to(dtype)
    zero_(model[0][0], outs=[0, 1])
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    small = shrink(model, x)
    assert small[0][0].weight.shape == (6, 3, 3, 3)
    assert {p.dtype for p in small.parameters()} == {dtype}
    tolerance = 1e-12 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(run(small, x), run(model, x), rtol=tolerance, atol=tolerance)


def test_devices(device: str) -> None:
    model: Any = settle(
        nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.PReLU(8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3))
    )
    zero_(model[0], outs=[0, 1])
    zero_(model[4], ins=[5])
    model, x = model.to(device), torch.randn(4, 5, device=device)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    zero_(model[0], outs=[0, 1])
    zero_(model[4], ins=[5])
    small, report = check(model, x, optimizer=optimizer)
    assert shapes(report) == {"0": (6, 5), "3": (5, 6), "4": (3, 5)}
    tensors = [
        *small.state_dict().values(),
        *(v for state in optimizer.state.values() for v in state.values() if v.dim()),
    ]
    assert {t.device.type for t in tensors} == {device}


def test_copies_pickles_and_keeps_names() -> None:
    model: Any = settle(create_model("lenet_5"))
    zero_(model.conv1, outs=range(5))
    x = torch.randn(2, 1, 28, 28)
    small = shrink(model, x)
    assert type(small) is type(model)
    assert small.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(copy.deepcopy(small)(x), small(x))
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))
    other = shrink(model, x)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), small(x))
    assert all(p.is_contiguous() and p.grad is None for p in small.parameters())


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_trains_on(name: str) -> None:
    """One step on the copy is the masked model's step, on the weights that are left."""
    model: Any = settle(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 8), nn.ReLU()))
    model.append(settle(nn.Linear(8, 3)))
    for i, outs in ((0, [1, 4]), (3, [0, 7])):
        layer = mask_(model[i])
        layer.mask[outs] = False
        layer.bias_mask[outs] = False
    mask_(model[3]).mask.view(8, 6, 16)[:, [1, 4]] = False
    mask_(model[5]).mask[:, [0, 7]] = False
    scale = nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS[name]([{"params": model.parameters(), "lr": 0.05}, {"params": [scale]}])
    x, y = torch.randn(8, 1, 6, 6), torch.randint(3, (8,))

    def step(model: nn.Module, scale: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x) * scale, y).backward()
        optimizer.step()

    for _ in range(3):
        step(model, scale, optimizer)
    masked = copy.deepcopy((model, scale, optimizer))
    small: Any = shrink(model, x, optimizer=optimizer)
    assert small[3].weight.shape == (6, 64)
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [
        list(map(id, small.parameters())),
        [id(scale)],
    ]
    assert set(optimizer.state) == {*small.parameters(), scale}
    for _ in range(2):
        step(small, scale, optimizer)
        step(*masked)
    torch.testing.assert_close(small.state_dict(), shrink(masked[0], x).state_dict())
    torch.testing.assert_close(scale, masked[1])


def test_weights_that_are_computed() -> None:
    """By torch.nn.utils.prune, after a call that leaves what deepcopy refuses; and anew in each, in training."""
    x = torch.randn(2, 8)
    model: Any = settle(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    prune.ln_structured(model[0], "weight", 0.5, 2, 0)
    model[0].bias.data[model[0].weight_mask[:, 0] == 0] = 0
    expected = model(x)
    small = shrink(model, x)
    assert [tuple(small[i].weight.shape) for i in (0, 2)] == [(8, 8), (4, 8)]
    torch.testing.assert_close(small(x), expected)
    for seed in range(6):
        torch.manual_seed(seed)
        last = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 4))
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), last)
        zero_(model[0], outs=[0, 1, 2])
        check(model, x)


SQUEEZES: dict[str, Any] = {
    "mean": lambda y: y.mean((2, 3)),
    "sum": lambda y: y.sum((2, 3)) / 100,
    "squeeze twice": lambda y: F.adaptive_avg_pool2d(y, 1).squeeze(-1).squeeze(-1),
    "squeeze": lambda y: F.adaptive_avg_pool2d(y, 1).squeeze((2, 3)),
    "transposed": lambda y: y.transpose(1, 3).transpose(3, 1).amax((2, 3)),
}
EXCITES: dict[str, Any] = {
    "None": lambda g: g[:, :, None, None],
    "unsqueeze": lambda g: g.unsqueeze(-1).unsqueeze(3),
    "the rest of it": lambda g: 1 - g.unsqueeze(2).unsqueeze(2),
    "concatenated": lambda g: torch.concat((g[:, :, None, None],), 1),
}


class SqueezeExcite(nn.Module):
    def __init__(self, squeeze: str, excite: str) -> None:
        super().__init__()
        self.squeeze, self.excite = squeeze, excite
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.SyncBatchNorm(8), nn.Conv2d(8, 5, 1)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x)))
        gate = torch.sigmoid(self.up(F.relu(self.down(SQUEEZES[self.squeeze](y)))))
        return self.b(y * EXCITES[self.excite](gate))


@pytest.mark.parametrize(("squeeze", "excite"), [*((s, "None") for s in SQUEEZES), *(("mean", e) for e in EXCITES)])
def test_squeeze_and_excite(squeeze: str, excite: str) -> None:
    model, x = settle(SqueezeExcite(squeeze, excite)), torch.randn(2, 3, 9, 9)
    zero_(model.b, ins=[1, 4, 6])
    zero_(model.down, ins=[1, 4, 6])
    small, report = check(model, x)
    assert shapes(report) == {"a": (5, 3), "b": (5, 5), "down": (4, 5), "up": (5, 4)}
    larger = torch.randn(2, 3, 14, 11)
    torch.testing.assert_close(run(small, larger), run(model, larger), rtol=1e-5, atol=1e-5)


def test_sums_of_constants_stay() -> None:
    """They are others for other sizes."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().sum((2, 3)))

    model = settle(Sums())
    zero_(model.a, outs=[0, 1], bias=0.5)
    zero_(model.a, outs=[2], bias=-1.0)
    small, report = check(model, torch.randn(2, 3, 4, 4))
    assert shapes(report)["a"] == (3, 3)
    larger = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(run(small, larger), run(model, larger), rtol=1e-5, atol=1e-4)


def test_shortcuts_padded_with_channels() -> None:
    """A residual network's stream loses channels as well; the zeros that its code adds stay."""
    model = settle(create_model("resnet20"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            zero_(module, outs=range(0, module.out_channels, 2))
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data[::2] = 0
            module.running_mean[::2] = 0
    _, report = check(model, torch.randn(2, 3, 32, 32))
    found = shapes(report)
    assert found["conv1"] == (8, 3) and found["layer1.2.conv2"] == (8, 8)
    assert found["layer2.0.conv1"] == (16, 8) and found["layer2.0.conv2"] == (24, 16)
    assert found["layer3.2.conv2"] == (56, 32) and found["linear"] == (10, 56)
    assert "8 of 32 outputs stay: they are zeros that the model's code adds" in report["layer2.0.conv2"].note


def test_keeps_channels_last() -> None:
    model: Any = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    x = torch.randn(1, 3, 9, 9)
    model.to(memory_format=torch.channels_last)
    zero_(model[0], outs=[0, 5])
    small = shrink(model, x)
    assert [tuple(small[i].weight.shape) for i in (0, 2)] == [(6, 3, 3, 3), (4, 6, 3, 3)]
    assert all(small[i].weight.is_contiguous(memory_format=torch.channels_last) for i in (0, 2))


def test_optimizer_gets_new_biases() -> None:
    model: Any = settle(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)))
    zero_(model[0], outs=[0, 1])
    optimizer = torch.optim.SGD(model.named_parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    zero_(model[0], outs=[0, 1])
    small = shrink(model, torch.randn(2, 4), optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert group["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(map(id, group["params"])) == list(map(id, small.parameters()))
    assert small[1].bias not in optimizer.state
    assert optimizer.state[small[0].weight]["momentum_buffer"].shape == (4, 4)


def test_tied_parameters_that_masks_have_parted() -> None:
    model: Any = settle(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1].weight = model[0].weight
    mask_(model[1]).mask[0] = False
    model[1].bias_mask[0] = False
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    small = shrink(model, torch.randn(2, 4), optimizer=optimizer)
    assert small[1].out_features == 3
    assert set(optimizer.param_groups[0]["params"]) == set(optimizer.state) == set(small.parameters())


class Careless(nn.Module):
    """Code that needs the number of channels."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self.a, self.b, self.code = nn.Linear(4, 6), nn.Linear(6, 3), code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, self.b(self.a(x)))


def test_refuses() -> None:
    x = torch.randn(2, 4)

    def refused(error: type[Exception], message: str, model: Any, x: Any = x, **options: Any) -> None:
        zero_(model.a, outs=[0])
        optimizer = options.get("optimizer", torch.optim.SGD(model.parameters(), 0.1))
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        with pytest.raises(error, match=message):
            shrink(model, x, **{"optimizer": optimizer, **options})
        torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before)
        assert model.training

    def careless(code: Any = lambda _, y: y) -> Any:
        return settle(Careless(code))

    refused(ValueError, r"^shrink: example_input must not be empty$", careless(), x[:0])
    strangers = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    message = r"^shrink: optimizer must train parameters of the model, got one that trains none$"
    refused(ValueError, message, careless(), optimizer=strangers)
    for round_to in (0, -1, 2.5):
        message = rf"^shrink: round_to must be an int of at least 1, got {round_to}$"
        refused(ValueError, message, careless(), round_to=round_to)
    message = r"^shrink: ignored_layers must name layers of the model, got 'fc\*'$"
    refused(ValueError, message, careless(), ignored_layers=["a", "fc*"])
    message = r"^shrink: model must be traceable by torch.export, got "
    refused(ValueError, message, careless(lambda _, y: y if y.sum() > 0 else -y))
    refused(ValueError, message, careless(), torch.randn(2, 5))
    message = r"^shrink: the smaller model must give the same for example_input, got another output$"
    refused(RuntimeError, message, careless(lambda self, y: y * self.a.out_features))
    message = r"^shrink: the smaller model must run, got 5 is wrong$"

    def raising(self: Any, y: Tensor) -> Tensor:
        if self.a.out_features != 6:
            raise AssertionError(f"{self.a.out_features} is wrong")
        return y

    refused(RuntimeError, message, careless(raising))
    model = careless()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    message = r"^shrink: row_var of the optimizer must have its parameter's shape \(6, 4\), got \(6, 1\)$"
    refused(ValueError, message, model, optimizer=optimizer)
