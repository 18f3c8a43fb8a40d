"""Fields of a file: varints and texts, read from a buffer and never beyond it. See docs/format.md."""

from __future__ import annotations

from typing import NoReturn

MAX_TEXT = 1 << 16


def refuse(where: str, rule: str) -> NoReturn:
    raise ValueError(f"{where}: {rule}")


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the top bit set where another byte follows."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def text(value: str) -> bytes:
    data = value.encode()
    return varint(len(data)) + data


class Cursor:
    """Reads fields from a buffer and never beyond it."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            refuse(self.where, f"{what} must lie in the {self.left} bytes left, got {n} bytes")
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self, what: str, limit: int = 1 << 62) -> int:
        value = 0
        for k in range(9):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << 7 * k
            if byte < 0x80:
                if k and not byte:
                    refuse(self.where, f"{what} must be a varint of the fewest bytes")
                if value > limit:
                    refuse(self.where, f"{what} must be at most {limit}, got {value}")
                return value
        refuse(self.where, f"{what} must be a varint of at most 9 bytes")

    def text(self, what: str) -> str:
        return self.utf8(self.take(self.varint(f"length of {what}", MAX_TEXT), what), what)

    def utf8(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            refuse(self.where, f"{what} must be UTF-8")

    def end(self) -> None:
        if self.left:
            refuse(self.where, f"must end after its last field, got {self.left} more bytes")
