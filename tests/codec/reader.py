"""A second reader of files and of codecs 3 and 5, written from docs/format.md alone: slow, plain, unchecked."""

from __future__ import annotations

import collections
import functools
import math
import struct
import zlib
from collections.abc import Sequence

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


LOGISTIC = [
    0,
    1,
    1,
    2,
    3,
    5,
    8,
    13,
    22,
    36,
    60,
    98,
    162,
    267,
    439,
    720,
    1179,
    1921,
    3108,
    4971,
    7812,
    11955,
    17625,
    24743,
]
LOGISTIC += [32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476]
LOGISTIC += [65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65536]


def squash(d: int) -> int:
    i, f = divmod(d + 3072, 128)
    return min(65519, max(16, (LOGISTIC[i] * (128 - f) + LOGISTIC[i + 1] * f) // 128))


@functools.cache
def stretch(p: int) -> int:
    return next((d for d in range(-3072, 3072) if squash(d) >= 16 * (p // 16) + 8), 3071)


class Slot:
    def __init__(self) -> None:
        self.p, self.n = 32768, 0

    @property
    def logit(self) -> int:
        return stretch(self.p // 16 * 16)

    @property
    def level(self) -> int:
        return min(23, max(0, (self.logit + 2304) // 128))

    def learn(self, bit: int) -> None:
        self.p += (65535 * bit - self.p) * (65536 // (2 * self.n + 3)) // 32768
        self.n = min(255, self.n + 1)


class Mixed:
    """Integers of matrices."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.mixers: dict[tuple[str, int], list[int]] = {}
        self.slots: collections.defaultdict[tuple[object, ...], Slot] = collections.defaultdict(Slot)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def varint(self) -> int:
        byte = self.byte()
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def bit(self, p: int) -> int:
        size = self.high - self.low
        last = self.low + (size >> 16) * p + ((size & 65535) * p >> 16)
        bit = int(self.number <= last)
        self.low, self.high = (self.low, last) if bit else (last + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            self.low, self.high = (self.low << 8) % 2**32, (self.high << 8) % 2**32 + 255
            self.number = (self.number << 8) % 2**32 + self.byte()
        return bit

    def mix(self, name: str, number: int, slots: list[Slot]) -> int:
        mixer = self.mixers.setdefault((name, number), [0] + [18432] * len(slots))
        logits = [slot.logit for slot in slots]
        p = squash(min(3071, max(-3072, sum(w * d for w, d in zip(mixer[1:], logits, strict=True)) // 65536)))
        bit = self.bit(p)
        step = (65536 * bit - p) * (32 + 1000 // (1 + mixer[0] // 16)) // 128
        mixer[1:] = [
            (w + (d * step + 16384) // 32768 + 2**31) % 2**32 - 2**31 for w, d in zip(mixer[1:], logits, strict=True)
        ]
        mixer[0] = min(16383, mixer[0] + 1)
        for slot in slots:
            slot.learn(bit)
        return bit

    def matrix(self, number: int, rows: int, columns: int, group: int, lag: int) -> list[int]:
        v: list[int] = []
        apart, second = int(group > 1), max(math.isqrt(group), 2) if group > 1 else 2 * lag

        def at(distance: int) -> int:
            return v[-distance] if distance <= len(v) else 0

        def number_of(base: int, digits: list[int]) -> int:
            return sum(digit * base**i for i, digit in enumerate(digits))

        for i in range(rows * columns):
            r, c = divmod(i, columns)
            near = [1, 2, 3, lag - 1, lag, lag + 1, columns, 2 * lag]
            near_bits = number_of(2, [int(at(d) != 0) for d in near])
            sizes = [min(2, abs(at(d))) for d in (1, lag, columns, 2 * lag)]
            row, column = self.slots["row", number, r], self.slots["column", number, c]
            slots = [
                row,
                self.slots["near", near_bits],
                self.slots["sizes", number_of(3, sizes)],
                self.slots["density", row.level, column.level],
                self.slots["group", number, c // group],
            ]
            kept = self.mix("kept", int(at(1) != 0) + 2 * int(at(lag) != 0) + 4 * apart, slots)
            column.learn(kept)
            if not kept:
                v.append(0)
                continue

            def signs(*distances: int) -> int:
                return number_of(3, [1 if at(d) > 0 else 2 if at(d) < 0 else 0 for d in distances])

            lean = 2 * (at(1) + at(lag) + at(second)) + at(columns) + at(lag + 1) + at(lag - 1)
            leaning = min(4, abs(lean).bit_length()) * (-1 if lean < 0 else 1)
            slots = [
                self.slots["before", signs(1, lag, columns, 2)],
                self.slots["lagging", signs(1, lag, lag + 1, lag - 1)],
                self.slots["lean", leaning],
                self.slots["above", signs(second, 1, second + 1, second - 1)],
            ]
            negative = self.mix("sign", apart, slots)
            m = 4 * (abs(at(1)) + abs(at(lag))) + 3 * abs(at(columns)) + 2 * abs(at(second))
            others = (2, lag + 1, lag - 1, 2 * lag, columns + 1, max(columns - 1, 1), 2 * columns)
            m += sum(abs(at(d)) for d in others)
            b = m.bit_length()
            h = m if m < 2 else min(15, 2 * b - 2 + (m >> (b - 2)) % 2)
            size = 1
            while size < 15:
                few = min(size, 4)
                slots = [
                    self.slots["count", number, negative, size],
                    self.slots["around", number_of(3, sizes[:3]), size],
                    self.slots["row larger", number, r, few],
                    self.slots["column larger", number, c, few],
                    self.slots["weighed", h, size],
                ]
                if not self.mix("larger", size, slots):
                    break
                size += 1
            if size == 15:
                length = 0
                while True:
                    slot = self.slots["length", length]
                    bit = self.bit(min(65519, max(16, slot.p)))
                    slot.learn(bit)
                    if not bit:
                        break
                    length += 1
                rest = 1
                for _ in range(length):
                    rest = 2 * rest + self.bit(32768)
                size = 14 + rest
            v.append(-size if negative else size)
        return v

    def matrices(self, count: int) -> list[list[int]]:
        sizes: list[tuple[int, int, int, int]] = []
        for _ in range(count):
            columns = self.varint()
            if columns == 0:
                sizes.append(sizes[-1])
                continue
            rows, group = self.varint(), self.varint()
            sizes.append((rows, columns, group, self.varint() if group == 1 else group))
        self.low, self.high, self.number = 0, 2**32 - 1, 0
        for _ in range(4):
            self.number = 256 * self.number + self.byte()
        found = [self.matrix(i, *size) for i, size in enumerate(sizes)]
        assert self.at >= len(self.data), "no byte is left"
        return found


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
