from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crest_ext.augment import Augment, cubic_spline, hsv_of_rgb, rgb_of_hsv, standardize

zoom = pytest.importorskip("scipy.ndimage").zoom
NOTHING = Augment(0, 0, 0, 0, 0, smallest=12)
UNIT = st.floats(0, 1, width=32)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, side: int = 12) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)


def plain(augment: Augment, batch: Tensor, seed: int) -> Tensor:
    """The paper's augmentation for one image after another, pixel by pixel, with scipy's spline."""
    n, side = len(batch), batch.shape[3]
    generator = draws(seed)
    u = torch.rand(3, n, generator=generator)
    a = torch.rand(2, n, generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    sizes = torch.randint(augment.smallest, side + 1, (n,), generator=generator)
    places = torch.rand(2, n, generator=generator)
    result = torch.empty_like(batch)
    for i in range(n):
        dh, ds, dv = (
            float((2 * u[j, i] - 1) * d) for j, d in enumerate((augment.hue, augment.saturation, augment.value))
        )
        lows = [1 / (1 + s) for s in (augment.saturation_scale, augment.value_scale)]
        a_s, a_v = (low + float(a[j, i]) * (1 / low - low) for j, low in enumerate(lows))
        image = np.empty((3, side, side))
        for row in range(side):
            for column in range(side):
                h, s, v = colorsys.rgb_to_hsv(*(batch[i, :, row, column] / 255).tolist())
                s, v = min(max(a_s * s + ds, 0), 1), min(max(a_v * v + dv, 0), 1)
                image[:, row, column] = colorsys.hsv_to_rgb((h + dh) % 1, s, v)
        if mirrored[i]:
            image = image[:, :, ::-1]
        size = int(sizes[i])
        x, y = (int(places[j, i] * (side - size + 1)) for j in range(2))
        crop = image[:, x : x + size, y : y + size]
        resized = np.stack([zoom(channel, side / size, order=3, mode="mirror") for channel in crop])
        result[i] = torch.from_numpy(np.clip(np.round(resized * 255), 0, 255).astype(np.uint8))
    return result


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(4, 12), st.integers(0, 7))
def test_equals_one_image_after_another(seed: int, smallest: int, n: int) -> None:
    augment, batch = Augment(hue=0.3, smallest=smallest), images(n)
    changed = augment(batch, draws(seed))
    assert changed.dtype == torch.uint8
    difference = (changed.int() - plain(augment, batch, seed).int()).abs()
    assert not n or difference.max() <= 1  # float32 against float64, before they are rounded
    assert not n or difference.float().mean() < 0.01


def test_the_generator_decides() -> None:
    batch = images()
    assert torch.equal(Augment(smallest=9)(batch, draws(1)), Augment(smallest=9)(batch, draws(1)))
    assert not torch.equal(Augment(smallest=9)(batch, draws(1)), Augment(smallest=9)(batch, draws(2)))


def test_defaults_are_those_of_the_best_teacher() -> None:
    assert Augment() == Augment(0.06, 0.26, 0.20, 0.21, 0.13, 24)
    assert Augment()(images(3, 32), draws(0)).shape == (3, 3, 32, 32)


def test_half_of_the_images_are_mirrored_and_nothing_else_happens_without_ranges() -> None:
    batch = images(400)
    changed = NOTHING(batch, draws(0))
    same = (changed == batch).flatten(1).all(1)
    mirrored = (changed == batch.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_crops_reach_every_size_and_place() -> None:
    """An image whose corner pixels tell where a crop begins and ends: corners come to lie on corners."""
    ramp = torch.arange(12, dtype=torch.uint8) * 20
    batch = ramp.view(1, 1, 12, 1).expand(500, 3, 12, 12).contiguous()  # grey, and the same in a mirror
    changed = replace(NOTHING, smallest=10)(batch, draws(0))
    ends = {(int(c[0, 0, 0]) // 20, int(c[0, -1, 0]) // 20) for c in changed}
    assert ends == {(place, place + size - 1) for size in (10, 11, 12) for place in range(13 - size)}


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 40))
def test_cubic_spline_is_scipys(n: int, m: int) -> None:
    values = np.random.default_rng(n * m).standard_normal(n)
    ours = cubic_spline(n, m).numpy() @ values
    assert ours == pytest.approx(zoom(values, m / n, order=3, mode="mirror")[:m], abs=1e-5)


def test_cubic_spline_of_the_same_size_changes_nothing() -> None:
    assert torch.allclose(cubic_spline(9, 9), torch.eye(9), atol=1e-6)


@settings(deadline=None)
@given(st.tuples(UNIT, UNIT, UNIT))
def test_hsv_is_colorsys(rgb: tuple[float, float, float]) -> None:
    hsv = hsv_of_rgb(torch.tensor([rgb])).squeeze(0)
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    assert 0 <= hsv[0] < 1
    assert abs((float(hsv[0]) - h + 0.5) % 1 - 0.5) < 1e-5  # on a circle
    assert hsv[1:].tolist() == pytest.approx([s, v], abs=1e-5)
    assert rgb_of_hsv(hsv.unsqueeze(0)).squeeze(0).tolist() == pytest.approx(list(rgb), abs=1e-5)


@settings(deadline=None)
@given(st.tuples(UNIT, UNIT, UNIT))
def test_rgb_is_colorsys(hsv: tuple[float, float, float]) -> None:
    assert rgb_of_hsv(torch.tensor([hsv])).squeeze(0).tolist() == pytest.approx(colorsys.hsv_to_rgb(*hsv), abs=1e-5)


def test_colours_of_whole_images() -> None:
    batch = torch.rand(3, 3, 4, 5)
    flat = hsv_of_rgb(batch.permute(0, 2, 3, 1).reshape(-1, 3))
    assert torch.equal(hsv_of_rgb(batch).permute(0, 2, 3, 1).reshape(-1, 3), flat)


def test_standardize() -> None:
    batch = images(5, 32)
    batch[4] = 77
    x = standardize(batch)
    for image, standardized in zip(batch[:4].double(), x.double(), strict=False):
        assert torch.allclose(standardized, (image - image.mean()) / image.std(correction=0), atol=1e-5)
    assert x.dtype == torch.float32
    assert not x[4].any()
    assert standardize(batch[:0]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hue": -0.1}, "hue must be a finite number >= 0, got -0.1"),
        ({"value_scale": math.inf}, "value_scale must be a finite number >= 0, got inf"),
        ({"saturation": "x"}, "saturation must be a finite number >= 0, got 'x'"),
        ({"smallest": 1}, "smallest must be an int >= 2, got 1"),
        ({"smallest": 3.5}, "smallest must be an int >= 2, got 3.5"),
    ],
)
def test_refuses_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Augment(**kwargs)
    assert str(caught.value) == f"Augment: {message}"


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (torch.zeros(2, 3, 32, 32), r"\(2, 3, 32, 32\) float32"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"\(3, 32, 32\) uint8"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), r"\(2, 1, 32, 32\) uint8"),
        (torch.zeros(2, 3, 32, 31, dtype=torch.uint8), r"\(2, 3, 32, 31\) uint8"),
    ],
)
def test_refuses_images(batch: Tensor, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^Augment: images must have shape \(n, 3, side, side\) and be uint8, got {got}$"
    ):
        Augment()(batch, draws(0))


def test_refuses_small_images() -> None:
    with pytest.raises(ValueError, match=r"^Augment: images must have sides of at least 24, got 12$"):
        Augment()(images(), draws(0))


def test_autocast_changes_nothing() -> None:
    given = images(side=32)
    expected = Augment()(given, draws(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Augment()(given, draws(0)), expected)
