"""The payload of one tensor: back bit for bit, as documented, and never a fault for what is not one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import reader
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_ext import _C

ROOT = Path(__file__).parents[2]
CODEC = ROOT / "csrc" / "codec"
# Of -fsanitize=undefined what finds faults here: all of it takes much longer to compile.
CHECKED = "-fsanitize=address,alignment,bounds,bool,shift,signed-integer-overflow"
KINDS = [("bool", 1), *[(kind, size) for kind in ("int", "float") for size in (1, 2, 4, 8)]]


def encode(words: np.ndarray, kind: str, columns: int | None = None) -> bytes:
    return _C.encode_tensor(words.view(np.uint8), kind, words.itemsize, columns or words.size)  # type: ignore[arg-type]


def decode(payload: bytes, like: np.ndarray, kind: str) -> np.ndarray:
    out = np.full_like(like, 77)
    _C.decode_tensor(payload, out.view(np.uint8), kind, like.itemsize)  # type: ignore[arg-type]
    return out


def check(words: np.ndarray, kind: str, columns: int | None = None) -> bytes:
    payload = encode(words, kind, columns)
    assert np.array_equal(decode(payload, words, kind), words)
    if words.size <= 3000:
        assert reader.read(payload, words.size, 8 * words.itemsize, kind) == words.tolist()
    return payload


def some(kind: str, size: int, n: int, density: float, seed: int = 0) -> np.ndarray:
    """Weights as they come: most of them small, some -0.0, all bit patterns now and then."""
    random = np.random.default_rng(seed)
    keep = random.random(n) < density
    if kind == "bool":
        return keep.astype(np.uint8)
    if kind == "int":
        return (
            np.where(keep, random.geometric(0.1, n) * random.choice([-1, 1], n), 0).astype(f"i{size}").view(f"u{size}")
        )
    words = random.integers(0, 1 << 8 * size, n, dtype=f"u{size}")
    if size > 1:
        normal = random.normal(size=n).astype(np.float32 if size == 2 else f"f{size}").view(f"u{max(size, 4)}")
        normal = (normal >> 16).astype(np.uint16) if size == 2 else normal
        words = np.where(random.random(n) < 0.01, words, normal)
    return np.where(keep, words, (random.random(n) < 0.1).astype(words.dtype) << (8 * size - 1)).astype(f"u{size}")


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_comes_back(kind: str, size: int, density: float) -> None:
    for n in (1, 2, 3, 5, 64, 65, 300, 2000):
        check(some(kind, size, n, density), kind)
    check(some(kind, size, 2000, density), kind, columns=50)


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_one_that_is_not_zero(kind: str, size: int) -> None:
    for at in (0, 1, 498, 499):
        words = np.zeros(500, f"u{size}")
        words[at] = 1
        assert len(check(words, kind)) < 30


def test_every_pattern_of_16_bits() -> None:
    for kind in ("int", "float"):
        check(np.arange(1 << 16, dtype=np.uint16), kind)


def test_patterns_of_floats() -> None:
    bits = [0, 0x80000000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 1, 0x80000001, 0x7F800000, 0xFF800000, 0x007FFFFF]
    check(np.array(bits, np.uint32), "float")
    check(np.array(bits * 30 + [0] * 2000, np.uint32), "float")


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(st.sampled_from(["u1", "u2", "u4", "u8"]), st.integers(1, 90), elements={"max_value": 255}),
    st.integers(0, 56),
    st.sampled_from(["int", "float"]),
)
def test_any_words(words: np.ndarray, shift: int, kind: str) -> None:
    words = words << np.array(shift % (8 * words.itemsize), words.dtype)
    check(words, kind)
    check(np.tile(words, 3), kind, columns=words.size)


def test_four_states() -> None:
    """From 65536 elements on; the reader takes its time, so only once."""
    words = np.zeros(1 << 16, np.uint32)
    words[::97] = np.arange(676)
    payload = check(words, "float", columns=256)
    assert payload[0] & 8
    assert reader.read(payload, words.size, 32, "float") == words.tolist()


def test_what_the_model_is_for() -> None:
    """Rows, columns, neighbours and a distance each make a mask smaller; so do equal values and unused bits."""
    random = np.random.default_rng(0)
    shape = (200, 784)
    where = np.indices(shape)
    uniform = random.random(shape)
    for density in (
        np.where(where[0] % 5 == 0, 0.9, 0.05),
        np.where(where[1] % 7 == 0, 0.9, 0.05),
    ):
        mask = (uniform < density).astype(np.uint8)
        assert len(check(mask.ravel(), "bool", columns=784)) < 0.9 * len(check(mask.ravel(), "bool"))
    runs = np.repeat(random.random(4000) < 0.3, 4).astype(np.uint8)
    assert len(check(runs, "bool")) < 0.7 * len(check(random.permutation(runs), "bool"))
    rows = np.tile(random.random(28) < 0.3, 200).astype(np.uint8) ^ (random.random(5600) < 0.02)
    assert len(check(rows, "bool")) < 0.5 * len(check(random.permutation(rows), "bool"))
    normal = random.normal(size=4000).astype(np.float32)
    whole = len(check(normal.view(np.uint32), "float"))
    half = len(check(normal.astype(np.float16).astype(np.float32).view(np.uint32), "float"))
    assert half < whole - 4000 * 12 / 8
    assert len(check(np.sign(normal).view(np.uint32), "float")) < 4000 / 8 + 30


def test_nearly_the_entropy() -> None:
    """Independent bits and exponents: nothing to gain beyond the order-0 entropy, and little to lose."""
    random = np.random.default_rng(0)
    values = np.where(random.random(300000) < 0.1, random.normal(size=300000), 0).astype(np.float32).view(np.uint32)

    def bits(items: np.ndarray) -> float:
        counts = np.unique(items, return_counts=True)[1]
        return float(-(counts * np.log2(counts / items.size)).sum())

    kept = values[values != 0]
    bound = (bits(values != 0) + bits(kept >> 23) + 23 * kept.size) / 8
    assert len(check(values, "float", columns=1000)) < 1.005 * bound


def test_a_palette_of_few_bits() -> None:
    """Values that end in zeros, as those of a bfloat16, are stored without these."""
    random = np.random.default_rng(0)
    floats = random.normal(size=16).astype(np.float32).view(np.uint32)
    pick = random.integers(0, 16, 3000)
    whole, cut = len(check(floats[pick], "float")), len(check((floats & 0xFFFF0000)[pick], "float"))
    assert cut == whole - 16 * 2


def test_same_bytes_and_unaligned() -> None:
    words = some("float", 4, 1000, 0.3)
    buffer = np.zeros(4001, np.uint8)
    buffer[1:] = words.view(np.uint8)
    payload = encode(words, "float")
    assert _C.encode_tensor(buffer[1:], "float", 4, 1000) == payload
    buffer[:] = 0
    _C.decode_tensor(payload, buffer[1:], "float", 4)
    assert np.array_equal(buffer[1:], words.view(np.uint8))


def refusals(payloads: list[bytes], like: np.ndarray, kind: str) -> int:
    count = 0
    for data in payloads:
        try:
            decode(data, like, kind)
        except ValueError as error:  # noqa: PERF203
            assert re.search(" must | need ", str(error))
            count += 1
    return count


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_cut_off_or_longer(kind: str, size: int) -> None:
    words = some(kind, size, 300, 0.3)
    payload = encode(words, kind, 30)
    for n in range(len(payload)):
        with pytest.raises(ValueError, match=r" must "):
            decode(payload[:n], words, kind)
    wrong = [payload[n:] for n in range(1, len(payload))]
    wrong += [payload[:n] + b"\0" + payload[n:] for n in range(len(payload) + 1)]
    assert refusals(wrong, words, kind) > 0.95 * len(wrong)  # Two symbols of one price can stand for one another.


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_flipped_bits(kind: str, size: int) -> None:
    words = some(kind, size, 300, 0.3)
    payload = encode(words, kind, 30)
    wrong = []
    for i in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[i // 8] ^= 1 << i % 8
        wrong.append(bytes(flipped))
    assert refusals(wrong, words, kind) > 0  # Raw bits can be anything: the file's CRC-32 finds these.


def payload(*parts: Any, states: int = 1) -> bytes:
    """Fields, then states as the coder starts with them."""
    return b"".join(bytes([p]) if isinstance(p, int) else bytes(p) for p in parts) + b"\0\0\1\0" * states


SPARSE, DENSE = 5, 4  # first byte
HALF, ONE = 64, [0, 15]  # the byte of a context: 2048 / 4096 slots; an alphabet of one symbol


REFUSED = [
    (b"", "first byte must lie in the payload: it is cut off"),
    (b"\5", "words of the coder must lie in the payload: it is cut off"),
    (b"\5\0\0\0\0", "states of the coder must be at least 65536, got 0"),
    (payload(16), "first byte must be less than 16, got 16"),
    (payload(0), "first byte must announce a mask or values, got 0"),
    (payload(6), "signs of zeros need a mask of floats, got 6"),
    (payload(SPARSE), "mask must lie in the payload: it is cut off"),
    (payload(SPARSE, 0, 0), "probability must be 1 to 72 or 129 to 200, got 0"),
    (payload(SPARSE, 0, 73), "probability must be 1 to 72 or 129 to 200, got 73"),
    (payload(SPARSE, 0, 201), "probability must be 1 to 72 or 129 to 200, got 201"),
    (payload(SPARSE, 0x80, 0), "lag must be at least 1, got 0"),
    (payload(SPARSE, 0x80, 11), "lag must be at most 10, got 11"),
    (payload(SPARSE, 0x80, 0x81, 0), "lag must be a varint of the fewest bytes"),
    (payload(SPARSE, 1, 3), "columns must divide 10, got 3"),
    (payload(SPARSE, 1, 0), "columns must divide 10, got 0"),
    (payload(SPARSE, 1, 5, HALF, HALF, 0, 15), "classes must be 2, got 1"),
    (payload(SPARSE, 1, 5, HALF, HALF, 2, 0), "an alphabet must have a symbol with a weight"),
    (payload(SPARSE, 0, 1), "words of the coder must lie in the payload: it is cut off"),
    (payload(DENSE, 0x3F, 0), "shift must be less than 32, got 63"),
    (payload(DENSE, 0x40 + 31, 0), "shift must be less than 31, got 31"),
    (payload(DENSE, 0x80 + 1, 0), "shift must be less than 1, got 1"),
    (payload(DENSE, 0xC0 + 32, 0), "shift must be less than 32, got 32"),
    (payload(DENSE, 0xC0 + 9, 0, 15, [0, 0, 0x80]), "palette must have words of 32 bits"),
    (payload(DENSE, 4, 5), "trailing zeros must be at most 4, got 5"),
    (payload(DENSE, 31, 31, 2, ONE), "symbols must be at most 1, got 2"),
    (payload(DENSE, 0, 0, [0xFF] * 9), "first symbol must be a varint of at most 9 bytes"),
    (payload(DENSE, 0, 0, 0, 0, 0x1F), "symbols must have 0 in its last 4 bits"),
    (payload(DENSE, 0, 0, 0, [0x80, 4]), "symbols must be at most 511, got 512"),
    (payload(DENSE, 0x80, 0x81, 1, ONE), "symbols must be at most 127, got 129"),
    (payload(DENSE, 0xC0, 2, 0xFF, [1, 0, 0, 0] * 2), "palette must be ascending"),
    (payload(DENSE, 0, 0, 1, ONE, 0), "payload must end with its values, got 1 more bytes"),
    (payload(DENSE, 0, 0, 1, ONE, states=2), "payload must end with its values, got 4 more bytes"),
    (payload(DENSE, 8, 0, 1, ONE, [0] * 9), "raw bits must lie in the payload: it is cut off"),
    (payload(DENSE, 1, 0, 1, ONE, 0, 4), "bits after the last raw bit must be 0"),
    (payload(DENSE, 0, 0, 1, ONE)[:-2] + b"\2\0", "states of the coder must end as 65536, got 131072"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        decode(data, np.zeros(10, np.uint32), "float")


def test_the_helper_makes_valid_payloads() -> None:
    assert decode(payload(DENSE, 0, 0, 1, ONE), np.zeros(10, np.uint32), "float").tolist() == [1] * 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _C.encode_tensor(b"abcd", "complex", 4, 1), "kind must be 'bool', 'int' or 'float', got 'complex'"),  # type: ignore[arg-type]
        (lambda: _C.encode_tensor(b"abc", "int", 3, 1), "itemsize must be 1, 2, 4 or 8, got 3"),
        (lambda: _C.encode_tensor(b"ab", "bool", 2, 1), "itemsize of bool must be 1, got 2"),
        (lambda: _C.encode_tensor(b"abcde", "int", 4, 1), "buffer must be bytes of at least one element"),
        (lambda: _C.encode_tensor(b"", "int", 4, 1), "buffer must be bytes of at least one element"),
        (lambda: _C.encode_tensor(b"abc", "int", 1, 2), "columns must divide 3, got 2"),
        (lambda: _C.encode_tensor(b"abc", "int", 1, 0), "columns must divide 3, got 0"),
        (lambda: _C.encode_tensor(np.zeros(6, np.uint8)[::2], "int", 1, 3), "buffer must be contiguous"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_written_to_what_can_be_written_to() -> None:
    with pytest.raises(BufferError):
        _C.decode_tensor(payload(DENSE, 0, 0, 1, ONE), b"0123", "int", 4)  # type: ignore[arg-type]


def test_stands_alone() -> None:
    """The codec knows neither torch nor Python: it can be built and fuzzed by itself."""
    own = {path.name for path in CODEC.iterdir()}
    for path in CODEC.iterdir():
        assert set(re.findall(r'#include "(.*)"', path.read_text())) <= own, path.name
        assert not re.findall(r"#include <.*[/.].*>", path.read_text()), path.name


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_fuzz(tmp_path: Path) -> None:
    """A few seconds of mutated payloads under AddressSanitizer and UndefinedBehaviorSanitizer."""
    sources = [Path(__file__).parent / "fuzz.cpp", *sorted(CODEC.glob("*.cpp"))]
    flags = ["g++", "-std=c++17", "-O1", CHECKED, "-fno-sanitize-recover=all", f"-I{CODEC.parent}"]
    flags += ["--param", "asan-instrumentation-with-call-threshold=0"]  # calls: faster to compile

    def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*flags, *arguments], capture_output=True, text=True, cwd=tmp_path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for compiled in pool.map(lambda source: build("-c", source), sources):
            assert compiled.returncode == 0, compiled.stderr
    built = build(*(f"{source.stem}.o" for source in sources), "-o", "fuzz")
    if re.search("cannot find .*san", built.stderr):
        pytest.skip("needs the libraries of g++'s sanitizers")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([tmp_path / "fuzz", "4", "0"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    tensors, inputs, accepted = map(int, re.findall(r"\d+", run.stdout))
    assert tensors > 10
    assert inputs > accepted > 0
