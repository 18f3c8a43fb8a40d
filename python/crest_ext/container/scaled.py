"""Codec 4: floats that are integers times a scale, as those of a network are that was quantised and made float again.

Integers need no list of the values that occur, in which a float takes four bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crest_ext import _C
from crest_ext.container.fields import Cursor, refuse

WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
LARGEST = 1 << 17  # No integer is as large.
DIVISORS = 16  # The smallest integer seen at first is at most so large,
SAMPLE = 256  # of so many.
TRIES = 3  # divisors that fit these, and are tried on all: with 1, others fit as well


def factor(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """A scale and integers whose products are, bit for bit, a tensor, or None if there are none of at most 17 bits.

    Args:
        flat: (n,) on the CPU.

    Returns:
        (), dtype of flat, and (n,) int8, int16 or int32.
    """
    some = flat[:: max(1, len(flat) // (4 * SAMPLE))]
    some = some[some != 0][:SAMPLE]
    if flat.dtype not in (torch.float32, torch.float64) or not len(some):
        return None
    eps, words = torch.finfo(flat.dtype).eps, torch.int32 if flat.dtype == torch.float32 else torch.int64
    ratios = some.double() / some.abs().min() * torch.arange(1, DIVISORS + 1)[:, None]
    whole = (ratios - ratios.round()).abs() <= 4 * eps * ratios.abs()  # also of no NaN and no infinity
    for row in ratios[(whole & (ratios.abs() < LARGEST)).all(1)][:TRIES].round():
        largest = row.abs().argmax()
        near = (some[largest].double() / row[largest]).to(flat.dtype)
        for scale in (
            near,
            torch.nextafter(near, near.new_zeros(())),
            torch.nextafter(near, near.new_tensor(math.inf)),
        ):
            floats = (flat.double() / scale).round()
            least, most = (m.item() for m in floats.aminmax())
            if not max(-least, most) < LARGEST:  # or NaN
                continue
            integers = floats.int()  # and no -0.0
            if torch.equal(product(integers, scale).view(words), flat.view(words)):
                width = next(w for w in WIDTHS if -(1 << (8 * w - 1)) <= least and most < 1 << (8 * w - 1))
                return (scale, integers.to(WIDTHS[width])) if fits(scale, width) else None
    return None


def encode(scale: Tensor, integers: Tensor, columns: int) -> bytes:
    """The payload."""
    width = integers.dtype.itemsize
    coded = _C.encode_tensor(integers.view(torch.uint8).numpy(), "int", width, columns)
    return scale.numpy().tobytes() + bytes([width]) + coded


def decode(payload: bytearray | memoryview, out: Tensor, where: str) -> None:
    """Write the elements to `out`: (n,), float32 or float64."""
    cursor = Cursor(bytes(payload), where)
    scale = torch.frombuffer(bytearray(cursor.take(out.dtype.itemsize, "scale")), dtype=out.dtype)[0]
    width = cursor.take(1, "width")[0]
    if width not in WIDTHS:
        refuse(where, f"width must be 1, 2 or 4, got {width}")
    if not fits(scale, width):
        refuse(where, f"scale must be a normal number > 0 of finite products, got {scale.item()}")
    integers = torch.empty(len(out), dtype=WIDTHS[width])
    rans(cursor.take(cursor.left, "integers"), integers, "int", where)
    out.copy_(product(integers, scale))


def rans(payload: bytes | bytearray | memoryview, out: Tensor, kind: _C.Kind, where: str) -> None:
    """Write the elements of a payload of codec 3 to `out`."""
    try:
        _C.decode_tensor(payload, out.view(torch.uint8).numpy(), kind, out.dtype.itemsize)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def product(integers: Tensor, scale: Tensor) -> Tensor:
    """Rounded once: the integers are exact in the dtype of the scale."""
    return integers.to(scale.dtype) * scale


def fits(scale: Tensor, width: int) -> bool:
    """No product is subnormal, which a processor may be told to flush to 0, or infinite."""
    limits = torch.finfo(scale.dtype)
    return limits.tiny <= scale.item() <= limits.max / 2.0 ** (8 * width - 1)
