"""Codec 5 of the second reader, written from docs/format.md alone."""

from __future__ import annotations

import collections
import functools
import math

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
