"""Random changes of images, a batch at once.

Source: Urban et al., "Do Deep Convolutional Nets Really Need to be Deep and Convolutional?", ICLR 2017, section 2.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor


def standardize(images: Tensor) -> Tensor:
    """Each image less its own mean, over its own standard deviation; what the paper's networks take.

    Args:
        images: (n, ...); any real dtype.

    Returns:
        (n, ...); float32. An image of one colour becomes zeros.
    """
    x = images.float().flatten(1)
    x = x - x.mean(1, keepdim=True)
    std = x.square().mean(1, keepdim=True).sqrt()
    return (x / torch.where(std > 0, std, 1)).view(images.shape)


@dataclass(frozen=True)
class Augment:
    """Shifts and scales of colours, mirror images, and crops enlarged to the whole size; drawn for each image.

    Defaults are those of the paper's best single teacher, which its students see too.

    Attributes:
        hue: Dh; the hue, in [0, 1), moves by U(-Dh, Dh).
        saturation: Ds; the saturation, in [0, 1], is scaled, then moves by U(-Ds, Ds).
        value: Dv; as the saturation. The paper leaves open which comes first, scale or shift.
        saturation_scale: As; the scale is U(1 / (1 + As), 1 + As).
        value_scale: Av; as the saturation's.
        smallest: the side S of the crop is a whole number, U(smallest, side of the image); so are its places,
            U(0, side - S). It is enlarged by the cubic spline through its pixels, with corners on corners.
    """

    hue: float = 0.06
    saturation: float = 0.26
    value: float = 0.20
    saturation_scale: float = 0.21
    value_scale: float = 0.13
    smallest: int = 24

    def __post_init__(self) -> None:
        for field in fields(self)[:-1]:
            number = getattr(self, field.name)
            if not (isinstance(number, (int, float)) and math.isfinite(number) and number >= 0):
                raise ValueError(f"Augment: {field.name} must be a finite number >= 0, got {number!r}")
        if type(self.smallest) is not int or self.smallest < 2:
            raise ValueError(f"Augment: smallest must be an int >= 2, got {self.smallest!r}")

    @torch.autocast("cpu", enabled=False)  # products in bfloat16 would be other images
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and change.

        Args:
            images: (n, 3, side, side), red, green and blue; uint8, on the CPU.
            generator: decides the result, together with n.

        Returns:
            (n, 3, side, side); uint8.

        Raises:
            ValueError: images are not as above, or smaller than the smallest crop.
        """
        if (
            images.dtype != torch.uint8
            or images.dim() != 4
            or images.shape[1] != 3
            or images.shape[2] != images.shape[3]
        ):
            shape = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            raise ValueError(f"Augment: images must have shape (n, 3, side, side) and be uint8, got {shape}")
        n, side = len(images), images.shape[3]
        if side < self.smallest:
            raise ValueError(f"Augment: images must have sides of at least {self.smallest}, got {side}")
        spans = torch.tensor([self.hue, self.saturation, self.value]).view(3, 1, 1, 1)
        shifts = (2 * torch.rand(3, n, 1, 1, generator=generator) - 1) * spans
        scales = torch.rand(2, n, 1, 1, generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        sizes = torch.randint(self.smallest, side + 1, (n,), generator=generator)
        places = (torch.rand(2, n, generator=generator) * (side - sizes + 1)).long()  # below 1: never the end itself

        h, s, v = hsv_of_rgb(images.float() / 255).unbind(1)
        s = s * _between(scales[0], self.saturation_scale) + shifts[1]
        v = v * _between(scales[1], self.value_scale) + shifts[2]
        x = rgb_of_hsv(torch.stack([(h + shifts[0]) % 1, s.clamp(0, 1), v.clamp(0, 1)], 1))
        x = torch.where(mirrored.view(n, 1, 1, 1), x.flip(3), x)
        table = _enlargers(side, self.smallest)
        rows, columns = (table[sizes - self.smallest, place].unsqueeze(1) for place in places)
        return (rows @ x @ columns.mT).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _between(draw: Tensor, scale: float) -> Tensor:
    """From U(0, 1) to U(1 / (1 + scale), 1 + scale)."""
    low = 1 / (1 + scale)
    return low + draw * (1 + scale - low)


def hsv_of_rgb(rgb: Tensor) -> Tensor:
    """Hue in [0, 1), saturation and value in [0, 1], as colorsys has them. rgb: (n, 3, ...) in [0, 1]."""
    v, largest = rgb.max(1)
    span = v - rgb.amin(1)
    r, g, b = ((v - c) / torch.where(span > 0, span, 1) for c in rgb.unbind(1))
    h = torch.where(largest == 0, b - g, torch.where(largest == 1, 2 + r - b, 4 + g - r))
    h = torch.where(span > 0, h / 6 % 1, 0)
    h = torch.where(h < 1, h, 0)  # just below 0 rounds to 1
    return torch.stack([h, span / torch.where(v > 0, v, 1), v], 1)


def rgb_of_hsv(hsv: Tensor) -> Tensor:
    """The inverse of hsv_of_rgb."""
    h, s, v = hsv.unbind(1)
    sector = torch.stack([(5 + 6 * h) % 6, (3 + 6 * h) % 6, (1 + 6 * h) % 6], 1)
    away = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    return v.unsqueeze(1) * (1 - s.unsqueeze(1) * away)


@functools.lru_cache(4)
def _enlargers(side: int, smallest: int) -> Tensor:
    """[S - smallest, place]: (side, side), what makes side values of the S from place on; others are zero."""
    table = torch.zeros(side - smallest + 1, side - smallest + 1, side, side)
    for row, size in enumerate(range(smallest, side + 1)):
        enlarge = cubic_spline(size, side)
        for place in range(side - size + 1):
            table[row, place, :, place : place + size] = enlarge
    return table


def cubic_spline(n: int, m: int) -> Tensor:
    """(m, n): the interpolating cubic spline through n values, read at m places from the first value to the last.

    Beyond its ends the sequence goes on as in a mirror at the end values, as with scipy.ndimage.zoom(mode="mirror").
    """
    knots = torch.arange(-1, n + 1)
    mirror = torch.zeros(n + 2, n, dtype=torch.float64)
    mirror[torch.arange(n + 2), n - 1 - (n - 1 - knots.abs()).abs()] = 1
    at = torch.linspace(0, n - 1, m, dtype=torch.float64).unsqueeze(1)

    def basis(places: Tensor) -> Tensor:
        d = (places - knots).abs()
        return torch.where(d < 1, 2 / 3 - d**2 * (1 - d / 2), (2 - d).clamp(min=0) ** 3 / 6) @ mirror

    through = basis(torch.arange(n, dtype=torch.float64).unsqueeze(1))
    return (basis(at) @ torch.linalg.inv(through)).float()
