"""Writes what the fuzzer starts from: payloads of each kind, and each that the tests refuse. `seeds.py FOLDER`"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # as pytest does

from test_tensor import KINDS, REFUSED, encode, some

NUMBERS = {"bool": 0, "int": 1, "float": 2}


def head(kind: str, size: int, n: int, columns: int) -> bytes:
    """As fuzz.cpp reads it: format, elements, columns."""
    form = next(b for b in range(12) if b % 3 == NUMBERS[kind] and 1 << b // 3 == size)
    return bytes([form, (n - 1) & 255, (n - 1) >> 8, columns - 1])


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (data, _) in enumerate(REFUSED):
        (folder / f"refused_{i}").write_bytes(head("float", 4, 10, 10) + data)
    for kind, size in KINDS:
        for n, columns in ((1, 1), (60, 6), (300, 30), (900, 30)):
            for density in (0.0, 0.1, 0.6, 1.0):
                payload = encode(some(kind, size, n, density), kind, columns)
                (folder / f"{kind}{size}_{n}_{density}").write_bytes(head(kind, size, n, columns) + payload)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
