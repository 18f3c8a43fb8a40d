"""Codec 5: small integers, or floats that such integers stand for, of several tensors in one stream.

An integer times a scale is a float, or it says which one of a list. Models that learn as they go, over all tensors of
the stream, code fewer bytes than those of codec 3, at a tenth of its speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from crest_ext import _C
from crest_ext.container import scaled
from crest_ext.container.fields import Cursor, refuse, varint
from crest_ext.container.index import MIXED_DTYPES

MOST = 1 << 19  # elements: more would take too long
LARGEST = 8  # mean size of the integers that are not 0, up to which they are coded well and soon enough
LIMIT = 32767
LONGEST = 255  # values of a list
SAMPLE = 1 << 12  # elements that are looked at first: most tensors have too many values


def encode(tensors: Sequence[Tensor]) -> bytes | None:
    """The payload, or None if there is one that is not of small integers, or too much."""
    if not 0 < sum(t.numel() for t in tensors) <= MOST:
        return None
    parts, numbers, sizes = [], [], []
    for t in tensors:
        found = integers(t)
        if not found:
            return None
        numbers.append(found[0])
        parts.append(found[1])
        rows = t.shape[0] if t.dim() > 1 else 1
        sizes.append((rows, t.numel() // rows, math.prod(t.shape[2:])))
    head = _write(numbers) if tensors[0].is_floating_point() else b""
    return varint(len(tensors)) + head + _C.encode_mixed(torch.cat(parts).numpy(), sizes)


def integers(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """A scale, (), or a list of values, and small integers, (numel,) int16, that stand for a tensor, if they can."""
    if tensor.dtype not in MIXED_DTYPES or not 0 < tensor.numel() <= MOST:
        return None
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.is_floating_point():
        words = flat.view(torch.uint8) if flat.dtype == torch.bool else flat
        return (flat, words.to(torch.int16)) if _small(words) else None
    for find in (_scale, _list):
        found = find(flat)
        if found and _small(found[1]):
            return found[0], found[1].to(torch.int16)
    return None


def _small(flat: Tensor) -> bool:
    least, most = (int(bound) for bound in flat.aminmax())
    if not -LIMIT <= least <= most <= LIMIT:
        return False
    return int(flat.abs().sum(dtype=torch.int64)) <= LARGEST * int(flat.count_nonzero())


def _scale(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """A scale, (), and integers, (n,), whose products are the elements."""
    if not _words(flat).any():
        return flat.new_ones(()), flat.int()
    found = scaled.factor(flat)
    return found if found and scaled.fits(found[0], torch.int16.itemsize) else None


def _list(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """All values but 0, (count,), ascending, and integers, (n,): the first of either sign is 1 or -1."""
    if len(flat) > SAMPLE:
        some = flat[:: len(flat) // SAMPLE]
        if len(some[some != 0].unique()) > LONGEST:
            return None
    values = flat[flat != 0].unique()
    if not 0 < len(values) <= LONGEST or not _normal(values) or (_words(flat[flat == 0]) != 0).any():
        return None
    negative = int((values < 0).sum())
    place = torch.searchsorted(values, flat)
    return values, torch.where(flat == 0, 0, place - negative + (flat > 0))


def _write(numbers: Sequence[Tensor]) -> bytes:
    """How many of the lowest bytes are 0 in all; for each matrix the length of its list, and these."""
    itemsize = numbers[0].dtype.itemsize
    table = torch.cat([n.reshape(-1) for n in numbers]).view(torch.uint8).view(-1, itemsize)
    short = min(int(table.any(0).int().argmax()), itemsize - 1)
    counts = [n.numel() if n.dim() else 0 for n in numbers]
    parts, at = [bytes([short])], 0
    for count in counts:
        parts += [bytes([count]), table[at : at + max(count, 1), short:].numpy().tobytes()]
        at += max(count, 1)
    return b"".join(parts)


def decode(payload: bytearray | memoryview, out: Tensor, where: str) -> None:
    """Write the elements to `out`: (n,), of one of MIXED_DTYPES."""
    cursor = Cursor(bytes(payload), where)
    count = cursor.varint("number of matrices", len(out))
    numbers = list(_read(cursor, count, out.dtype)) if out.is_floating_point() else []
    decoded = torch.empty(len(out), dtype=torch.int16)
    try:
        numels = _C.decode_mixed(cursor.take(cursor.left, "integers"), decoded.numpy(), count)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if out.is_floating_point():
        for number, part, to in zip(numbers, decoded.split(numels), out.split(numels), strict=True):
            to.copy_(_listed(part, number, where) if number.dim() else scaled.product(part, number))
        return
    bounds = (0, 1) if out.dtype == torch.bool else (torch.iinfo(out.dtype).min, torch.iinfo(out.dtype).max)
    _check(decoded, *bounds, where)
    out.copy_(decoded)


def _read(cursor: Cursor, count: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """A scale, (), or a list, (values,), for each matrix."""
    short = cursor.take(1, "bytes left out")[0]
    if short >= dtype.itemsize:
        refuse(cursor.where, f"bytes left out must be less than {dtype.itemsize}, got {short}")
    for _ in range(count):
        length = cursor.take(1, "length of a list")[0]
        rows = max(length, 1)
        data = torch.zeros(rows, dtype.itemsize, dtype=torch.uint8)
        stored = bytearray(cursor.take(rows * (dtype.itemsize - short), "values"))
        data[:, short:] = torch.frombuffer(stored, dtype=torch.uint8).view(rows, -1)
        values = data.view(dtype)[:, 0]
        if not length:
            if not scaled.fits(values[0], torch.int16.itemsize):
                rule = "scale must be a normal number > 0 of finite products"
                refuse(cursor.where, f"{rule}, got {values[0].item()}")
            yield values[0]
            continue
        if not (_normal(values) and (values[1:] > values[:-1]).all()):
            refuse(cursor.where, "values must be normal numbers and ascending")
        yield values


def _listed(places: Tensor, values: Tensor, where: str) -> Tensor:
    negative = int((values < 0).sum())
    _check(places, -negative, len(values) - negative, where)
    table = torch.cat([values[:negative], values.new_zeros(1), values[negative:]])
    return table[places.int() + negative]


def _check(decoded: Tensor, least: int, most: int, where: str) -> None:
    low, high = (int(bound) for bound in decoded.aminmax())
    if low < least or high > most:
        refuse(where, f"integers must be from {least} to {most}, got {low} to {high}")


def _normal(values: Tensor) -> bool:
    """Neither 0 nor subnormal, which a processor may be told to take for 0, nor infinite nor NaN."""
    return bool((values.isfinite() & (values.abs() >= torch.finfo(values.dtype).tiny)).all())


def _words(flat: Tensor) -> Tensor:
    return flat.view(torch.int32 if flat.dtype == torch.float32 else torch.int64)
