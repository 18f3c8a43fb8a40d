from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import materialize
from crest_ext.nn import Masked, MaskedConv2d, MaskedLinear, mask_

PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "linear, no bias": lambda: nn.Linear(6, 5, bias=False),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "conv2d, no bias": lambda: nn.Conv2d(4, 6, (3, 1), stride=2, dilation=(1, 2), bias=False),
    "conv2d, reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "conv2d, grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv2d, channels last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "conv2d, depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"),
}


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest) -> nn.Module:
    return PLAIN[request.param]()


def sample(layer: nn.Module) -> Tensor:
    return torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 7, 7)


def masked(layer: nn.Module) -> Masked:
    """A twin of the layer with half of it dropped."""
    twin = MaskedLinear.from_linear(layer) if isinstance(layer, nn.Linear) else MaskedConv2d.from_conv2d(layer)
    for parameter, mask in twin.masked_parameters():
        mask.copy_(torch.rand_like(parameter) < 0.5)
    return twin


def dropped(layer: Masked) -> nn.Module:
    """What it must equal: a plain layer that holds the masked product."""
    plain = (nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d).__new__(type(layer).plain)
    plain.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in layer.__dict__.items()}
    for name, mask in (("weight", layer.mask), ("bias", layer.bias_mask)):
        if mask is not None:
            setattr(plain, name, nn.Parameter(getattr(layer, name).detach() * mask))
    return plain


@pytest.mark.parametrize("straight_through", [False, True])
def test_computes_the_masked_layer(plain: nn.Module, straight_through: bool) -> None:
    layer = masked(plain)
    layer.straight_through = straight_through
    expected, x = dropped(layer), sample(plain)
    out, want = layer(x), expected(x)
    torch.testing.assert_close(out, want)
    grad = torch.randn_like(out)
    out.backward(grad)
    want.backward(grad)
    for (parameter, mask), q in zip(layer.masked_parameters(), expected.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, q.grad if straight_through else q.grad * mask)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "kernel"), [(4, 3), (1, 3), (4, 1)])
def test_keeps_the_memory_format(channels: int, kernel: int, channels_last: bool) -> None:
    conv = nn.Conv2d(channels, 6, kernel)
    if channels_last:
        conv.to(memory_format=torch.channels_last)
    layer = masked(conv)
    weight, x = layer.effective_weight(), torch.randn(2, channels, 5, 5)
    assert weight.stride() == conv.weight.stride()
    assert torch.equal(weight, conv.weight * layer.mask)
    assert layer(x).stride() == conv(x).stride()


def test_starts_as_the_plain_layer(plain: nn.Module) -> None:
    """Same parameters, same state, hooks kept; the plain layer itself is not touched."""
    calls = []
    plain.register_forward_hook(lambda *args: calls.append(args))
    kind, state, x = type(plain), dict(plain.state_dict()), sample(plain)
    twin = MaskedLinear.from_linear(plain) if isinstance(plain, nn.Linear) else MaskedConv2d.from_conv2d(plain)
    torch.testing.assert_close(twin(x), plain(x))
    assert len(calls) == 2
    assert type(plain) is kind
    assert plain.state_dict().keys() == state.keys()
    assert all(p is q for p, q in zip(plain.parameters(), twin.parameters(), strict=True))
    assert {k for k in twin.state_dict() if "mask" not in k} == state.keys()
    assert repr(twin) == "Masked" + repr(plain)
    assert isinstance(twin, kind)


def test_mask_in_place_is_the_same_object(plain: nn.Module) -> None:
    model = nn.Sequential(plain, nn.ReLU())
    parameters = list(model.parameters())
    assert mask_(plain) is plain is model[0]
    assert isinstance(plain, Masked)
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))


def test_mask_in_place_keeps_masks() -> None:
    layer = mask_(nn.Linear(3, 3), mask_bias=False)
    layer.mask[0] = False
    assert layer.bias_mask is None
    assert mask_(layer) is layer
    assert layer.bias_mask is not None and layer.bias_mask.all()
    assert layer.mask.sum() == 6


def test_constructors() -> None:
    linear = MaskedLinear(3, 4, False, device="cpu", dtype=torch.float64)
    assert (linear.weight.shape, linear.weight.dtype, linear.bias) == ((4, 3), torch.float64, None)
    conv = MaskedConv2d(2, 4, 3, stride=2, mask_bias=False)
    assert (conv.stride, conv.bias_mask, conv.mask.shape) == ((2, 2), None, (4, 2, 3, 3))
    assert linear.mask.all() and conv.mask.all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(plain: nn.Module, clone: Callable[[nn.Module], nn.Module]) -> None:
    layer = masked(plain)
    layer.straight_through = True
    other = clone(layer)
    x = sample(plain)
    assert torch.equal(other(x), layer(x))
    assert other.straight_through
    other.mask.logical_not_()
    assert not torch.equal(other.mask, layer.mask)


def test_state_dict_round_trip(plain: nn.Module) -> None:
    layer, other = masked(plain), masked(copy.deepcopy(plain))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.mask, layer.mask)
    assert torch.equal(other(x := sample(plain)), layer(x))


def test_loads_a_dense_state_dict(plain: nn.Module) -> None:
    """Nothing in it is exactly 0, so nothing is dropped."""
    layer, expected = masked(plain), copy.deepcopy(plain)
    layer.load_state_dict(expected.state_dict())
    assert all(mask.all() for _, mask in layer.masked_parameters())
    torch.testing.assert_close(layer(x := sample(plain)), expected(x))


def test_loads_a_materialized_state_dict(plain: nn.Module) -> None:
    """Its zeros are the masks: pruned weights stay pruned when training goes on."""
    layer, other = nn.Sequential(masked(plain)), nn.Sequential(masked(copy.deepcopy(plain)))
    state = materialize(layer).state_dict()
    keys = set(state)
    other.load_state_dict(state)
    assert set(state) == keys
    for (_, mask), (_, expected) in zip(other[0].masked_parameters(), layer[0].masked_parameters(), strict=True):
        assert torch.equal(mask, expected)


def test_a_plain_layer_refuses_a_masked_state_dict(plain: nn.Module) -> None:
    """It would bring the dropped weights back to life."""
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "mask"'):
        plain.load_state_dict(masked(copy.deepcopy(plain)).state_dict())


def test_half_precision_and_autocast_keep_bool_masks(plain: nn.Module) -> None:
    layer = masked(plain)
    x = sample(plain)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    out = layer.to(torch.bfloat16)(x.bfloat16())
    assert layer.mask.dtype == torch.bool
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("straight_through", [False, True])
def test_compiles_whole(plain: nn.Module, straight_through: bool) -> None:
    layer = masked(plain)
    layer.straight_through = straight_through
    torch.compiler.reset()  # it gives up on code that it has compiled for eight other layers
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = sample(plain)
    gradients = []
    for run in (layer, compiled):
        layer.zero_grad()
        out = run(x)
        F.mse_loss(out, torch.zeros_like(out)).backward()
        gradients.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
    for g, e in zip(*gradients, strict=True):
        torch.testing.assert_close(g, e)


def test_compiles_with_inductor() -> None:
    """The default backend, on a network with both layers: the one users run."""
    model = nn.Sequential(masked(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), masked(nn.Linear(36, 5)))
    x = torch.randn(3, 1, 5, 5)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (nn.ReLU(), "is a ReLU"),
        (nn.LazyLinear(3), "is a LazyLinear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "is a ParametrizedLinear"),
        (nn.Bilinear(2, 2, 2), "is a Bilinear"),
    ],
)
def test_refuses_what_it_cannot_mask(module: nn.Module, what: str) -> None:
    with pytest.raises(ValueError, match=f"^mask_: module must be a plain Linear or Conv2d, got one that {what}$"):
        mask_(module)


def test_refuses_a_weight_that_is_computed() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    with pytest.raises(ValueError, match=r"got one that computes its weight from other parameters$"):
        mask_(layer)


def test_refuses_a_layer_without_weights() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.empty(0, 2))
    with pytest.raises(ValueError, match=r"got one that has no weights$"):
        mask_(layer)
