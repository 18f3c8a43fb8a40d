"""Every damaged, foreign or hostile file is a ValueError that names the file, the section and the rule."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from crest_ext.container import codecs, load, load_file, safe_open, save, save_file
from crest_ext.container.fields import varint
from crest_ext.container.frame import MAGIC
from crest_ext.container.index import DEFLATED, DTYPE_IDS, RANS, RAW, SPARSE

F32, F16, BOOL = 0, 2, 12
EDGES = [0, 1, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**62 + 1, 2**63 - 1]


def text(value: bytes) -> bytes:
    return varint(len(value)) + value


def entry(
    payload: bytes,
    shape: tuple[int, ...],
    codec: int = RAW,
    dtype: int = F32,
    name: bytes = b"x",
    length: int | None = None,
) -> tuple[bytes, bytes]:
    """An index entry, and its payload."""
    head = text(name) + bytes([dtype, codec, len(shape)]) + b"".join(varint(s) for s in shape)
    return head + varint(len(payload) if length is None else length) + struct.pack("<I", zlib.crc32(payload)), payload


def frame(index: bytes, payloads: bytes = b"", version: int = 1) -> bytes:
    """A file of version 1 whose checksums are right, whatever it says."""
    tail = struct.pack("<IQ", version, len(index)) + index
    return MAGIC + struct.pack("<I", zlib.crc32(tail)) + tail + payloads


def file(*entries: tuple[bytes, bytes], metadata: bytes = b"\0", tail: bytes = b"") -> bytes:
    index = metadata + varint(len(entries)) + b"".join(head for head, _ in entries)
    return frame(index, b"".join(payload for _, payload in entries) + tail)


def deflate(data: bytes) -> bytes:
    return codecs._deflate(np.frombuffer(data, np.uint8))


def sparse(count: int, positions: bytes, values: bytes) -> bytes:
    packed = deflate(positions)
    return varint(count) + varint(len(packed)) + packed + deflate(values)


def small() -> bytes:
    weight = torch.zeros(300)
    weight[[3, 5, 290]] = torch.tensor([1.0, -2.0, float("nan")])
    return save({"w": weight, "b": torch.randn(3), "s": torch.arange(64), "m": torch.rand(9) < 0.5}, {"k": "v"})


def test_the_helpers_make_valid_files() -> None:
    got = load(file(entry(sparse(2, bytes([1, 2]), b"\0\0\0\0\x80\x80\x3f\x3f"), (5,), SPARSE)))
    assert torch.equal(got["x"], torch.tensor([0, 1.0, 0, 0, 1.0]))
    assert torch.equal(load(file(entry(b"\1\0", (2,), RAW, dtype=8)))["x"], torch.tensor([1, 0], dtype=torch.uint8))


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    data, path = small(), tmp_path / "cut.crest"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match=r"cut\.crest: (header|index|tensor .*|end): .*"):
            load_file(path)


def test_every_flipped_bit() -> None:
    data = small()
    for i in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        with pytest.raises(ValueError, match=r"^<bytes>: (header|index|tensor .*|end): "):
            load(bytes(flipped))


def test_every_flipped_bit_of_a_payload() -> None:
    """With a checksum that is right: either other values or a refusal, by name."""
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        weight = torch.zeros(20, 30).index_put((torch.arange(20), torch.arange(20)), torch.randn(20)).to(dtype)
        head, payload = save({"x": weight}), codecs._coded(weight, 30)[1][0][1]
        index = DTYPE_IDS[dtype]
        assert torch.equal(load(head)["x"], load(file(entry(payload, (20, 30), RANS, index)))["x"])
        for i in range(8 * len(payload)):
            flipped = bytearray(payload)
            flipped[i // 8] ^= 1 << i % 8
            try:
                assert load(file(entry(bytes(flipped), (20, 30), RANS, index)))["x"].shape == weight.shape
            except ValueError as error:
                assert str(error).startswith("<bytes>: tensor 'x': ")


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header: a .crest file must start with .*, got b''$"),
        (b"\x89", "header: a .crest file must start with .*: the file is cut off$"),
        (b"x", "header: a .crest file must start with .*, got b'x'$"),
        (torch_file(), "header: a .crest file must start with .*: this is a zip archive, as torch.save writes$"),
        (pickle.dumps({"a": 1}), "header: a .crest file must start with .*: this is a pickle$"),
        (gzip.compress(b"x", mtime=0), "header: a .crest file must start with .*: this is a gzip file$"),
        (safetensors.torch.save({"a": torch.zeros(3)}), "header: .*: this looks like a safetensors file$"),
        (b"\x89CREST\n" + bytes(100), "header: a .crest file must start with"),
        (MAGIC + bytes(7), "header: must have 16 bytes, got 15: the file is cut off$"),
        (MAGIC + bytes(4) + b"\1" + bytes(10), "header: must have 24 bytes, got 23: the file is cut off$"),
        (small() + b"\0", "index: "),
        (frame(b"\0\0", version=3), "header: version must be at most 2, got 3: a newer crest_ext wrote it$"),
        (frame(b"\0\0", version=0), "header: version must be at least 1, got 0$"),
        (
            MAGIC + struct.pack("<IIQ", 0, 1, 2**64 - 1),
            "header: index must lie in the 0 bytes left, got 1844",
        ),
        (frame(b"\0\0\0"), "index: must end after its last field, got 1 more bytes$"),
        (frame(b"\x80\0\0"), "index: number of metadata keys must be a varint of the fewest bytes$"),
        (frame(b"\xff" * 12), "index: number of metadata keys must be a varint of at most 9 bytes$"),
        (frame(b"\x05\0\0"), "index: number of metadata keys must be at most 1, got 5$"),
        (frame(b"\0" + varint(2**40)), "index: number of tensor names must be at most 0, got 1099511627776$"),
        (frame(b"\1" + text(b"\xff") + text(b"") + b"\0"), "index: metadata key must be UTF-8$"),
        (
            frame(b"\1" + varint(65537) + b"a" * 65537),
            "index: length of metadata key must be at most 65536, got 65537$",
        ),
        (
            frame(b"\2" + text(b"b") + text(b"") + text(b"a") + text(b"") + b"\0"),
            "index: metadata keys must be sorted and differ, got 'a' after 'b'$",
        ),
        (file(entry(b"", (0,)), entry(b"", (0,))), "index: tensor names must be sorted and differ, got 'x' after 'x'$"),
        (
            file(entry(b"", (0,), name=b"b"), entry(b"", (0,), name=b"a")),
            "index: tensor names must be sorted and differ, got 'a' after 'b'$",
        ),
        (file(entry(b"", (0,), dtype=15)), "index: tensor 'x': dtype must be one of 0 to 14, got 15"),
        (
            file(entry(b"", (0,), codec=6)),
            "index: tensor 'x': codec must be one of 0 to 5, got 6: from a newer crest_ext",
        ),
        (file(entry(b"", (1,) * 65)), "index: tensor 'x': rank must be at most 64, got 65$"),
        (file(entry(b"abc", (1,))), "index: tensor 'x': raw payload must have 4 bytes, got 3$"),
        (file(entry(b"abcd", (1,), length=5)), "index: tensor 'x': payload must lie in the 4 bytes left, got 5 bytes$"),
        (
            file(entry(b"abcd", (1,)), tail=b"!"),
            "end: the file must end after the last payload, at 41 bytes, got 42 bytes$",
        ),
        (file(entry(b"a", (2**40,), DEFLATED)), "index: tensor 'x': must be at most 1032 times its 1 bytes, got"),
        (file(entry(b"a", (2**31, 2**31), SPARSE)), r"index: tensor 'x': shape must have fewer than 2\*\*62 bytes"),
        (file(entry(b"", (2**61, 2, 0))), r"index: tensor 'x': shape must have fewer than 2\*\*62 bytes"),
        (
            file(entry(b"abc", (0,), DEFLATED)),
            "index: tensor 'x': an empty tensor must have an empty payload, got 3",
        ),
        (file(entry(b"a", (9,), SPARSE, BOOL)), "index: tensor 'x': a bool tensor must not be sparse$"),
        (file(entry(b"\x04", (2,), RAW, BOOL)), "tensor 'x': bits after the last bool must be 0$"),
        (file(entry(b"\5", (2,), RANS)), "tensor 'x': words of the coder must lie in the payload: it is cut off$"),
        (file(entry(b"\4\0\0\1\0\0\1\0", (2,), RANS, BOOL)), "tensor 'x': a bool must have a mask alone, got 4$"),
        (file(entry(b"", (2,), RANS)), "index: tensor 'x': must be at most 1032 times its 0 bytes, got 8$"),
        (
            file(entry(b"abc", (0,), RANS)),
            "index: tensor 'x': an empty tensor must have an empty payload, got 3",
        ),
        (file(entry(b"\xff" * 4, (2,), DEFLATED)), "tensor 'x': values must be a deflate stream: "),
        (file(entry(deflate(bytes(9)), (2,), DEFLATED)), "tensor 'x': values must inflate to 8 bytes$"),
        (file(entry(deflate(bytes(7)), (2,), DEFLATED)), "tensor 'x': values must inflate to 8 bytes$"),
        (
            file(entry(deflate(bytes(8)) + b"!", (2,), DEFLATED)),
            "tensor 'x': values must end with its stream, got 1 more",
        ),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^<bytes>: {message}"):
        load(data)


ONE = b"\0\0\x80\x3f"  # 1.0; of two, the planes are 0000 8080 3f3f


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (sparse(1, b"\5", ONE), "positions must be below 5, got 5$"),
        (sparse(2, b"\4\0", b"\0\0\0\0\x80\x80\x3f\x3f"), "positions must be below 5, got 5$"),
        (sparse(1, b"\x80\1", ONE), "positions must inflate to at most 1 bytes$"),
        (sparse(2, b"\x80\0", b"\0\0\0\0\x80\x80\x3f\x3f"), "positions must be 2 varints, got 1$"),
        (sparse(1, b"\x80", ONE), "positions must be 1 varints, got 0$"),
        (sparse(1, b"", ONE), "positions must be 1 varints, got 0$"),
        (sparse(1, b"\1\1", ONE), "positions must inflate to at most 1 bytes$"),
        (sparse(1, b"\1", bytes(4)), "values must not be zero$"),
        (sparse(2, b"\1\1", ONE), "values must inflate to 8 bytes$"),
        (sparse(6, bytes(6), ONE * 6), "number of values must be at most 5, got 6$"),
        (sparse(0, b"", b"") + b"!", "values must end with its stream, got 1 more bytes$"),
        (varint(1) + varint(2**40) + bytes(8), "positions must lie in the 8 bytes left, got 1099511627776 bytes$"),
        (varint(1) + varint(2) + b"\xff\xff" + deflate(ONE), "positions must be a deflate stream: "),
        (b"\xff" * 12, "number of values must be a varint of at most 9 bytes$"),
        (b"\1", "length of positions must lie in the 0 bytes left, got 1 bytes$"),
    ],
)
def test_sparse_payload_refused(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^<bytes>: tensor 'x': {message}"):
        load(file(entry(payload, (5,), SPARSE)))


def test_positions_of_several_bytes() -> None:
    """The shortest form, and no sum that runs over 64 bits."""
    for positions, message in [(b"\x81\0", "varints of the fewest bytes"), (b"\xff\xff", "1 varints, got 0")]:
        with pytest.raises(ValueError, match=f"tensor 'x': positions must be {message}$"):
            load(file(entry(sparse(1, positions, ONE), (300,), SPARSE)))
    assert load(file(entry(sparse(1, b"\xab\2", ONE), (300,), SPARSE)))["x"][299] == 1
    with pytest.raises(ValueError, match=r"tensor 'x': positions must be below 300, got 300$"):
        load(file(entry(sparse(1, b"\xac\2", ONE), (300,), SPARSE)))


@pytest.mark.parametrize("value", EDGES)
def test_every_integer_at_its_edges(value: int) -> None:
    """A wrong number in any field is refused, or it says the same thing as before."""
    number, zeros = varint(value), sparse(0, b"", b"")
    files = {
        "count": frame(b"\0" + number + entry(ONE, (1,))[0], ONE),
        "metadata": frame(number + b"\0"),
        "name": frame(b"\0\1" + number + b"x" + entry(ONE, (1,))[0][2:], ONE),
        "size": frame(
            b"\0\1" + text(b"x") + bytes([F32, RAW, 1]) + number + b"\4" + struct.pack("<I", zlib.crc32(ONE)), ONE
        ),
        "sparse size": file(entry(zeros, (value,), SPARSE)),
        "rans size": file(entry(bytes(9), (value,), RANS)),
        "two sizes": file(entry(zeros, (value, value), SPARSE)),
        "length": file(entry(ONE, (1,), length=value)),
        "nnz": file(entry(number + sparse(1, b"\0", ONE)[1:], (5,), SPARSE)),
        "packed": file(entry(b"\1" + number + sparse(1, b"\0", ONE)[2:], (5,), SPARSE)),
    }
    for field, data in files.items():
        tracemalloc.start()
        try:
            loaded = load(data)
        except ValueError as error:
            assert str(error).startswith("<bytes>: "), field
        else:
            assert sum(t.numel() for t in loaded.values()) <= 1032 * len(data), field
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20, field


@pytest.mark.parametrize("name", [b"", b"a\0b", b"../x", b"/etc/passwd", b"__class__", "\u0436".encode()])
def test_names_are_only_labels(name: bytes) -> None:
    assert list(load(file(entry(ONE, (1,), name=name)))) == [name.decode()]


def test_max_bytes() -> None:
    data = save({"x": torch.zeros(100)})
    assert torch.equal(load(data, max_bytes=400)["x"], torch.zeros(100))
    with pytest.raises(
        ValueError, match=r"^<bytes>: index: tensors must have at most 399 bytes \(max_bytes\), got 400$"
    ):
        load(data, max_bytes=399)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.crest: file must exist and be readable: No such file or directory$"):
        load_file(tmp_path / "none.crest")
    with pytest.raises(ValueError, match=r"file must exist and be readable: Is a directory$"):
        load_file(tmp_path)


def test_safe_open_checks_the_same(tmp_path: Path) -> None:
    data = bytearray(save({"a": torch.ones(3), "b": torch.ones(3, dtype=torch.int8)}))
    data[16 + 12] ^= 1  # behind the payload of a
    (tmp_path / "x.crest").write_bytes(data)
    with safe_open(tmp_path / "x.crest") as opened:
        assert torch.equal(opened.get_tensor("a"), torch.ones(3))
        with pytest.raises(ValueError, match=r"x\.crest: tensor 'b': CRC-32 must match: the file is damaged$"):
            opened.get_tensor("b")
    with pytest.raises(ValueError, match=r"^safe_open: framework must be 'pt', got 'np'$"):
        safe_open(tmp_path / "x.crest", framework="np")


# Of any name, as an attribute or not; `re.compile` is not one of them.
DANGEROUS = (
    r"(import|from) (c?pickle|marshal|shelve|dill|joblib|importlib|runpy)\b"
    r"|torch\.load\(|(?<!\.)\b(eval|exec)\(|yaml\.(unsafe_)?load\(|__import__"
)


def test_no_dangerous_call_in_the_load_path() -> None:
    """The container, and the registry of networks that a file may name."""
    import crest_ext.container
    import crest_ext.models

    sources = [p for m in (crest_ext.container, crest_ext.models) for p in Path(str(m.__file__)).parent.glob("*.py")]
    assert len(sources) > 10
    for source in sources:
        assert not re.search(DANGEROUS, source.read_text()), source
    assert re.search(DANGEROUS, "import pickle") and re.search(DANGEROUS, "model = torch.load(path)")


def test_save_is_needed(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.crest")
    assert load_file(tmp_path / "empty.crest") == {}
