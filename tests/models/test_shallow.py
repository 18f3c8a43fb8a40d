from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crest_ext.models import create_model
from crest_ext.models.shallow import FILTERS, HIDDEN

pytestmark = pytest.mark.usefixtures("one_thread")
BUDGETS = [1e6, 3.16e6, 1e7, 3.16e7]
MEMORY_ONLY = torch.device("meta")


def make(name: str, **kwargs: Any) -> nn.Module:
    """Without weights: a budget of 31.6 M then costs nothing."""
    with MEMORY_ONLY:
        return create_model(name, **kwargs)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def layers(model: nn.Module) -> list[str]:
    """The paper's notation: c, mp, lfc (linear), fc (with its ReLU), and what is left."""
    names = [name.rstrip("0123456789") for name, _ in model.named_children()]
    words = {"conv": "c", "pool": "mp", "bottleneck": "lfc", "fc": "fc"}
    return [words[name] for name in names if name in words]


@pytest.mark.parametrize("params", BUDGETS)
@pytest.mark.parametrize("conv_layers", [1, 2, 3, 4])
def test_convolutional_students_meet_every_budget(conv_layers: int, params: float) -> None:
    model = make("shallow", conv_layers=conv_layers, params=params)
    assert count(model) == pytest.approx(params, rel=1e-3)
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("params", BUDGETS)
@pytest.mark.parametrize("hidden_layers", [1, 2, 3, 4, 5])
def test_perceptrons_meet_every_budget(hidden_layers: int, params: float) -> None:
    model = make("shallow", conv_layers=0, hidden_layers=hidden_layers, params=params)
    assert count(model) == pytest.approx(params, rel=2.5e-3)  # one unit more in each layer is half a percent of 1 M
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_architectures_are_the_papers() -> None:
    by_convolutions = [layers(create_model("shallow", conv_layers=n)) for n in range(1, 5)]
    assert ["-".join(names) for names in by_convolutions] == [
        "c-mp-lfc-fc",
        "c-mp-c-mp-fc",
        "c-mp-c-mp-c-mp-fc",
        "c-mp-c-c-mp-c-mp-fc",
    ]
    perceptrons = [layers(create_model("shallow", conv_layers=0, hidden_layers=n)) for n in (1, 2, 5)]
    assert perceptrons == [["lfc", "fc"], ["fc"] * 2, ["fc"] * 5]
    for n in range(1, 5):
        model = create_model("shallow", conv_layers=n)
        kernels = {m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)}
        pools = {m.kernel_size for m in model.modules() if isinstance(m, nn.MaxPool2d)}
        assert (kernels, pools) == ({(5, 5)}, {3 if n == 1 else 2})


def test_every_layer_but_bottleneck_and_output_has_its_relu() -> None:
    for kwargs in ({"conv_layers": 1}, {"conv_layers": 4}, {"conv_layers": 0}, {"conv_layers": 0, "hidden_layers": 3}):
        named = list(create_model("shallow", **kwargs).named_children())
        after = {name: type(m) for (name, _), (_, m) in pairwise(named)}
        for name, module in named[:-1]:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                assert after[name] is (nn.Linear if name == "bottleneck" else nn.ReLU)


def test_default_widths_grow_with_the_budget_within_the_bounds() -> None:
    widths = [
        [m.out_channels for m in make("shallow", conv_layers=3, params=p).modules() if isinstance(m, nn.Conv2d)]
        for p in BUDGETS
    ]
    assert widths == [[50, 100, 100], [89, 178, 178], [158, 300, 300], [281, 300, 300]]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_other_width_is_nearer_to_the_budget(data: st.DataObject) -> None:
    """Whatever the fixed widths are: one unit of the free width more or less is no nearer."""
    n = data.draw(st.integers(1, 4))
    filters = tuple(data.draw(st.integers(low, high)) for low, high in FILTERS[n])
    params = data.draw(st.floats(1.2e7, 4e7))
    extra = {"hidden": data.draw(st.integers(*HIDDEN))} if n == 1 else {}
    model = make("shallow", conv_layers=n, params=params, filters=filters, **extra)
    assert tuple(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)) == filters
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    unit = linears[0].in_features + linears[1].out_features + (n > 1)  # its bias, which a bottleneck lacks
    assert abs(count(model) - params) <= unit / 2


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.floats(1e5, 4e7), st.data())
def test_ratios_of_a_perceptron(hidden_layers: int, params: float, data: st.DataObject) -> None:
    layers = hidden_layers + (hidden_layers == 1)
    ratios = [data.draw(st.floats(0.05, 1)) for _ in range(layers)]
    model = make("shallow", conv_layers=0, hidden_layers=hidden_layers, ratios=ratios, params=params)
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    scale = max(widths) / max(ratios)
    assert widths == [max(1, round(scale * ratio)) for ratio in ratios]
    unit = sum(3072 * (i == 0) + 2 * max(widths) + 12 for i in range(layers))
    assert abs(count(model) - params) <= unit


def test_a_budget_below_one_unit() -> None:
    least = 75 * 50 + 50 + 5000 + 200 + 200 + 2010
    assert count(create_model("shallow", params=least)) == least
    with pytest.raises(
        ValueError, match=rf"^Shallow: params must be at least {least:,} with filters \(50,\), got {least - 1:,}$"
    ):
        create_model("shallow", params=least - 1)
    with pytest.raises(ValueError, match=r"^Shallow: params must be at least 5,\d+,\d+ with filters \(500, 400\), got"):
        create_model("shallow", conv_layers=2, filters=(500, 400))
    with pytest.raises(ValueError, match=r"^Shallow: params must be at least 3,\d+ with 2 hidden layers, got 100$"):
        create_model("shallow", conv_layers=0, hidden_layers=2, params=100)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"conv_layers": 5}, "conv_layers must be 0 to 4, got 5"),
        ({"params": math.nan}, "params must be > 0 and at most 1e+15, got nan"),
        ({"params": 0}, "params must be > 0 and at most 1e+15, got 0"),
        ({"params": 1e30}, "params must be > 0 and at most 1e+15, got 1e+30"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"classes": -1}, "classes must be at least 1, got -1"),
        ({"conv_layers": 2, "filters": (50.5, 100)}, "filters must be whole numbers, got (50.5, 100)"),
        ({"hidden": 200.5}, "hidden must be whole numbers, got (200.5,)"),
        ({"filters": (49,)}, "filters must be 50 to 500, got (49,)"),
        ({"conv_layers": 2, "filters": (60,)}, "filters must be 50 to 500, 100 to 400, got (60,)"),
        ({"conv_layers": 0, "filters": (60,)}, "filters must be left out, got (60,)"),
        ({"hidden": 2001}, "hidden must be 200 to 2000, got (2001,)"),
        ({"conv_layers": 2, "hidden": 300}, "hidden must be left out unless conv_layers is 1, got 300"),
        ({"ratios": (1, 1)}, "ratios must be left out unless conv_layers is 0, got (1, 1)"),
        ({"conv_layers": 0, "ratios": (1,)}, "ratios must be one a layer, 2, got (1,)"),
        ({"conv_layers": 0, "ratios": (1, 0)}, "ratios must be finite numbers > 0, got (1, 0)"),
        ({"conv_layers": 0, "hidden_layers": 0}, "hidden_layers must be at least 1, got 0"),
        ({"hidden_layers": 2}, "hidden_layers must be 1 with convolutions, got 2"),
        ({"input_scale": 0}, "input_scale must be finite and > 0, got 0"),
        ({"init_scale": math.inf}, "init_scale must be finite and > 0, got inf"),
    ],
)
def test_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        create_model("shallow", **kwargs)
    assert str(caught.value) == f"Shallow: {message}"


def test_scales() -> None:
    def model(**kwargs: Any) -> nn.Module:
        torch.manual_seed(0)
        return create_model("shallow", conv_layers=0, params=1e5, **kwargs)

    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model(input_scale=0.5)(2 * x), model()(x))
    for a, b in zip(model(init_scale=0.5).parameters(), model().parameters(), strict=True):
        assert torch.allclose(2 * a, b)
    first = model()[1].weight
    bound = math.sqrt(6 / sum(first.shape))
    assert 0.99 * bound < first.abs().max() <= bound


@pytest.mark.parametrize(
    ("filters", "units", "millions"),
    [((76, 126, 148), 1200, 5.3), ((96, 171, 128), 512, 2.5), ((54, 158, 189), 1044, 5.8)],
)
def test_teachers_have_the_papers_numbers_of_parameters(filters: Any, units: int, millions: float) -> None:
    model = make("teacher", filters=filters, units=units)
    assert round(count(model) / 1e6, 1) == millions
    assert layers(model) == ["c"] * 2 + ["mp"] + ["c"] * 2 + ["mp"] + ["c"] * 4 + ["mp"] + ["fc"] * 2
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_dropout_of_a_teacher() -> None:
    named = list(create_model("teacher", dropout=(0.1, 0.2, 0.3, 0.4, 0.5)).named_children())
    before = {name: previous for (previous, _), (name, m) in pairwise(named)}
    drops = {before[name]: m.p for name, m in named if isinstance(m, nn.Dropout)}
    assert drops == {"pool1": 0.1, "pool2": 0.2, "pool3": 0.3, "fc_relu1": 0.4, "fc_relu2": 0.5}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"filters": (32, 64)}, "filters must be 32 to 96, 64 to 192, 128 to 384, got (32, 64)"),
        ({"filters": (32.5, 64, 128)}, "filters must be whole numbers, got (32.5, 64, 128)"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"units": 511}, "units must be 512 to 1536, got (511,)"),
        ({"dropout": (0.1,) * 4}, "dropout must be five numbers, got (0.1, 0.1, 0.1, 0.1)"),
        ({"dropout": (0, 0, 0, 0, 1)}, "dropout must be in [0, 1), got (0, 0, 0, 0, 1)"),
        ({"init_scale": -1}, "init_scale must be finite and > 0, got -1"),
    ],
)
def test_teacher_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        create_model("teacher", **kwargs)
    assert str(caught.value) == f"Teacher: {message}"
