"""A second reader of files and of codecs 3 and 5, written from docs/format.md alone: slow, plain, unchecked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from codec.reader_mixed import Mixed

NARROW = [0, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048]


class Payload:
    """Read from both ends, with the states of the coder."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.end, self.used = data, 0, len(data), 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        byte = self.byte()
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def raw(self, count: int) -> int:
        window = int.from_bytes(self.data[self.at :], "little") >> self.used
        self.at, self.used = self.at + (self.used + count) // 8, (self.used + count) % 8
        return window % (1 << count)

    def word(self) -> int:
        self.end -= 2
        return int.from_bytes(self.data[self.end : self.end + 2], "little")

    def start(self, lanes: int) -> None:
        self.states = [(self.word() << 16) + self.word() for _ in range(lanes)]

    def symbol(self, i: int, slots: Sequence[int]) -> int:
        """The symbol of sequence number i, of those that have so many slots."""
        lane = i % len(self.states)
        x = self.states[lane]
        slot, start, symbol = x % 4096, 0, 0
        while slot >= start + slots[symbol]:
            start += slots[symbol]
            symbol += 1
        x = slots[symbol] * (x // 4096) + slot - start
        self.states[lane] = x if x >= 65536 else (x << 16) + self.word()
        return symbol

    def alphabet(self) -> list[int]:
        head = self.varint()
        size = head // 2 + 1
        if head % 2:
            codes = [self.byte() for _ in range(size)]
            weights = [(16 + b % 16) << b // 16 if b else 0 for b in codes]
        else:
            pairs = [self.byte() for _ in range((size + 1) // 2)]
            weights = [NARROW[pairs[i // 2] >> 4 * (i % 2) & 15] for i in range(size)]
        slots = [max(1, 4096 * w // sum(weights)) if w else 0 for w in weights]
        while sum(slots) > 4096:
            slots[slots.index(max(slots))] -= 1
        slots[slots.index(max(slots))] += 4096 - sum(slots)
        return slots

    def plane(self, m: int) -> list[int]:
        head = self.byte()
        row_classes, column_classes, left, has_lag = head % 8 + 1, head // 8 % 8 + 1, head >> 6 & 1, head >> 7
        lag = self.varint() if has_lag else 0
        columns = self.varint() if row_classes * column_classes > 1 else m
        ones = {}
        for row in range(row_classes):
            for column in range(column_classes):
                for far in range(1 + has_lag):
                    for near in range(1 + left):
                        b = self.byte()
                        k = b % 128
                        rare = k if k < 8 else (8 + k % 8) << (k // 8 - 1)
                        ones[row, column, far, near] = rare if b < 128 else 4096 - rare
        alphabets = [self.alphabet() if count > 1 else [4096] for count in (row_classes, column_classes)]
        rows = m // columns
        row_class = [self.symbol(i, alphabets[0]) if row_classes > 1 else 0 for i in range(rows)]
        column_class = [self.symbol(i, alphabets[1]) if column_classes > 1 else 0 for i in range(columns)]
        bits: list[int] = []
        for i in range(m):
            far = bits[i - lag] if lag and i >= lag else 0
            near = bits[i - 1] if left and i else 0
            f = ones[row_class[i // columns], column_class[i % columns], far, near]
            bits.append(1 - self.symbol(i % columns, [f, 4096 - f]))
        return bits

    def values(self, count: int, width: int) -> list[int]:
        head = self.byte()
        kind, shift = head // 64, head % 64
        trailing = self.byte() if kind < 2 else 0
        first = self.varint() if kind < 3 else 0
        slots = self.alphabet()
        size = width // 8 - shift // 8
        words = [int.from_bytes(bytes(self.byte() for _ in range(size)), "little") << shift for _ in slots if kind == 3]
        out = []
        for i in range(count):
            v = first + self.symbol(i, slots)
            if kind == 3:
                out.append(words[v])
            elif kind == 2:
                q = v // 4 - 2
                z = v if v < 16 else ((4 + v % 4) << q) + self.raw(q)
                out.append(z // 2 if z % 2 == 0 else (1 << width) - 1 - (z - 1) // 2)
            else:
                low = self.raw(shift - trailing) << trailing
                out.append((v << shift) + low + (self.raw(1) << (width - 1) if kind == 1 else 0))
        return out


def read(data: bytes, n: int, width: int, kind: str) -> list[int]:
    """The n elements of a payload as unsigned words."""
    payload = Payload(data)
    head = payload.byte()
    payload.start(4 if head & 8 else 1)
    mask = payload.plane(n) if head & 1 else [1] * n
    signs = payload.plane(mask.count(0)) if head & 2 else [0] * mask.count(0)
    values = payload.values(mask.count(1), width) if head & 4 else [1] * mask.count(1)
    assert payload.at + (payload.used > 0) == payload.end, "both ends must meet"
    assert all(x == 65536 for x in payload.states)
    assert kind == "float" or not any(signs)
    kept, zeros = iter(values), iter(signs)
    return [next(kept) if keep else next(zeros) << (width - 1) for keep in mask]


KINDS = ["float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
KINDS += ["uint64", "bool", "float8_e4m3fn", "float8_e5m2"]
BYTES = [4, 8, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1]


def product(sizes: Sequence[int]) -> int:
    return sizes[0] * product(sizes[1:]) if sizes else 1


def elements(codec: int, data: bytes, n: int, dtype: int) -> list[int]:
    """The n elements of a stream as unsigned words."""
    size, kind = BYTES[dtype], KINDS[dtype].rstrip("0123456789")
    if codec == 3:
        kind = "bool" if kind == "bool" else "int" if "int" in kind else "float"
        return read(data, n, 8 * size, kind)
    if codec == 4:
        form, width = "<f" if size == 4 else "<d", 8 * data[size]
        (scale,) = struct.unpack(form, data[:size])
        whole = [w - (w >> (width - 1) << width) for w in read(data[size + 1 :], n, width, "int")]
        return [int.from_bytes(struct.pack(form, w * scale), "little") for w in whole]
    if codec == 5:
        payload = Payload(data)
        count = payload.varint()
        form = {"float32": "<f", "float64": "<d"}.get(KINDS[dtype])
        lists: list[list[float]] = []
        short = payload.byte() if form else 0
        for _ in range(count if form else 0):
            length = payload.byte()
            numbers = [bytes(payload.byte() for _ in range(size - short)) for _ in range(max(length, 1))]
            values = [struct.unpack(form, bytes(short) + number)[0] for number in numbers]
            negative = [value for value in values if value < 0]
            lists.append([*values[len(negative) :], *negative] if length else values)  # the last one is for -1
            lists[-1] = [0.0, *lists[-1]] if length else lists[-1]
        found = Mixed(data[payload.at :]).matrices(count)
        if form:
            pairs = [(w, values) for matrix, values in zip(found, lists, strict=True) for w in matrix]
            floats = [w * values[0] if len(values) == 1 else values[w] for w, values in pairs]
            return [int.from_bytes(struct.pack(form, x), "little") for x in floats]
        return [w % (1 << 8 * size) for matrix in found for w in matrix]
    if codec == 1:
        planes = zlib.decompress(data, -15)
        step = len(planes) // size
        data = bytes(planes[k * step + i] for i in range(step) for k in range(size))
    if KINDS[dtype] == "bool":
        return [data[i // 8] >> i % 8 & 1 for i in range(n)]
    return [int.from_bytes(data[size * i : size * (i + 1)], "little") for i in range(n)]


def read_file(data: bytes, words: bytes) -> tuple[dict[str, str], dict[str, tuple[str, list[int], list[int]]]]:
    """Metadata, and dtype, shape and words by name, of a file of version 2; `words` is the dictionary."""
    assert data[:8] == bytes.fromhex("89435245 53540d0a")
    assert int.from_bytes(data[8:12], "little") == zlib.crc32(data[12:])
    assert int.from_bytes(data[12:16], "little") == 2
    size = int.from_bytes(data[-8:-4], "little")
    assert int.from_bytes(data[-4:], "little") == zlib.crc32(data[-8 - size : -4])
    index = Payload(zlib.decompressobj(-15, words).decompress(data[-8 - size : -8]))

    def take(count: int) -> bytes:
        index.at += count
        return index.data[index.at - count : index.at]

    metadata = {}
    for _ in range(index.varint()):
        key = take(index.varint()).decode()
        metadata[key] = take(index.varint()).decode()
    names: list[bytes] = []
    for _ in range(index.varint()):
        shared = names[-1][: index.byte()] if names else take(1)[1:]
        names.append(shared + take(index.varint()))
    ranks = take(len(names))
    shapes = [[index.varint() for _ in range(rank)] for rank in ranks]
    numbers = [index.varint() for _ in names]
    count = index.varint()
    dtypes, codecs = take(count), take(count)
    more = [index.varint() if codec & 128 else 0 for codec in codecs]
    lengths = [index.varint() for _ in range(count)]
    crcs = [int.from_bytes(take(4), "little") for _ in range(count)]
    assert index.at == len(index.data)
    totals = [sum(product(shapes[t]) for t in range(len(names)) if numbers[t] == k) for k in range(count)]
    for k in range(count):
        if more[k]:
            first = max(j for j in range(k) if not more[j])
            totals[first], totals[k] = totals[first] - more[k], more[k]
    at, streams = 16, []
    for k in range(count):
        payload = data[at : at + lengths[k]]
        assert zlib.crc32(payload) == crcs[k]
        at += lengths[k]
        decoded = elements(codecs[k] & 127, payload, totals[k], dtypes[k])
        if more[k]:
            streams[-1] += decoded
        else:
            streams.append(decoded)
    starts = [k for k in range(count) if not more[k]]
    found = {}
    for name, shape, number in zip(names, shapes, numbers, strict=True):
        stream = streams[starts.index(number)]
        part, stream[:] = stream[: product(shape)], stream[product(shape) :]
        found[name.decode()] = (KINDS[dtypes[number]], shape, part)
    assert at == len(data) - 8 - size
    return metadata, found
