"""Frames of version 2 whose checksums are right and whose fields are not; and what its streams are for."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crest_ext.container import load, pools, safe_open, save, save_file, version2
from crest_ext.container.fields import varint
from crest_ext.container.frame import MAGIC
from crest_ext.container.reader import Reader

F32, RAW, MORE = 0, 0, 128
ONE = struct.pack("<f", 1)
EDGES = [3, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def text(data: bytes) -> bytes:
    return varint(len(data)) + data


@dataclass
class Fields:
    """An index of two tensors in two raw streams, to be changed."""

    metadata: bytes = b"\0"
    names: bytes = b"\2" + b"\0" + text(b"a") + b"\0" + text(b"b")
    ranks: bytes = b"\1\1"
    sizes: bytes = b"\1\1"
    numbers: bytes = b"\0\1"
    count: bytes = b"\2"
    dtypes: bytes = bytes([F32, F32])
    codecs: bytes = bytes([RAW, RAW])
    more: bytes = b""
    lengths: bytes = b"\4\4"
    payloads: list[bytes] = field(default_factory=lambda: [ONE, ONE])
    crcs: bytes | None = None
    tail: bytes = b""

    def body(self) -> bytes:
        crcs = b"".join(struct.pack("<I", zlib.crc32(p)) for p in self.payloads) if self.crcs is None else self.crcs
        parts = [self.metadata, self.names, self.ranks, self.sizes, self.numbers, self.count]
        return b"".join([*parts, self.dtypes, self.codecs, self.more, self.lengths, crcs, self.tail])


def frame(body: bytes, payloads: bytes = ONE + ONE, level: int = 9) -> bytes:
    packed = version2._deflate(body, level)
    return closed(packed, payloads, struct.pack("<I", len(packed)))


def closed(packed: bytes, payloads: bytes, size: bytes) -> bytes:
    tail = struct.pack("<I", 2) + payloads + packed + size + struct.pack("<I", zlib.crc32(packed + size))
    return MAGIC + struct.pack("<I", zlib.crc32(tail)) + tail


def file(**changes: object) -> bytes:
    fields = Fields(**changes)  # type: ignore[arg-type]
    return frame(fields.body(), b"".join(fields.payloads))


TWO_IN_ONE = {"numbers": b"\0\0", "count": b"\1", "dtypes": b"\0", "codecs": b"\0", "lengths": b"\x08"}
ONE_IN_TWO = {"names": b"\1\0" + text(b"a"), "ranks": b"\1", "sizes": b"\2", "numbers": b"\0"}


def test_the_helpers_make_valid_files() -> None:
    assert {k: v.tolist() for k, v in load(file()).items()} == {"a": [1], "b": [1]}
    assert {k: v.tolist() for k, v in load(file(**TWO_IN_ONE, payloads=[ONE + ONE])).items()} == {"a": [1], "b": [1]}
    assert load(file(**ONE_IN_TWO, codecs=bytes([RAW, RAW + MORE]), more=b"\1"))["a"].tolist() == [1, 1]
    tensors = {"a": torch.ones(1), "b": torch.ones(1)}
    assert torch.equal(load(save(tensors))["b"], tensors["b"])


REFUSED = [
    ({"tail": b"\0"}, "index: must end after its last field, got 1 more bytes"),
    (
        {"names": b"\2\0" + text(b"b") + b"\0" + text(b"a")},
        "index: tensor names must be sorted and differ, got 'a'",
    ),
    (
        {"names": b"\2\0" + text(b"a") + b"\1" + text(b"")},
        "index: tensor names must be sorted and differ, got 'a'",
    ),
    ({"names": b"\2\0" + text(b"a") + b"\0" + text(b"ab")}, "index: tensor name 'ab' must share 1 bytes, got 0"),
    ({"names": b"\2\0" + text(b"a") + b"\2" + text(b"b")}, "index: tensor name 'ab' must share 1 bytes, got 2"),
    ({"names": b"\2\0" + text(b"\xff") + b"\0" + text(b"b")}, "index: tensor name must be UTF-8"),
    ({"names": b"\x7f\0" + text(b"a") + b"\0" + text(b"b")}, "index: number of tensors must be at most "),
    ({"metadata": b"\2" + text(b"k") * 4}, "index: metadata keys must be sorted and differ, got 'k' after"),
    ({"metadata": b"\1" + varint(65537)}, "index: length of metadata key must be at most 65536, got 65537"),
    ({"ranks": b"\1\x41"}, "index: tensor 'b': rank must be at most 64, got 65"),
    ({"sizes": b"\1\2"}, "index: stream 1: raw payload must have 8 bytes, got 4"),
    ({"sizes": b"\1\0"}, "index: stream 1: an empty tensor must have an empty payload, got 4 bytes"),
    ({"numbers": b"\1\0"}, "index: tensor 'a': stream must be one of before or 0, got 1"),
    ({"numbers": b"\0\2"}, "index: tensor 'b': stream must be one of before or 1, got 2"),
    ({"numbers": b"\0\0", "sizes": b"\0\1"}, "index: every stream must have a tensor, got 1 of 2"),
    ({"count": b"\3"}, "index: number of streams must be at most 2, got 3"),
    ({"count": b"\1"}, "index: tensor 'b': stream must be one of before, got 1|index: "),
    ({"dtypes": b"\0\x0f"}, "index: stream 1: dtype must be one of 0 to 14, got 15: from a newer crest_ext?"),
    ({"dtypes": b"\0\1"}, "index: stream 1: raw payload must have 8 bytes, got 4"),
    ({"codecs": b"\0\6"}, "index: stream 1: codec must be one of 0 to 5, got 6: from a newer crest_ext?"),
    ({"codecs": b"\0\x7f"}, "index: stream 1: codec must be one of 0 to 5, got 127"),
    ({"codecs": b"\x80\0", "more": b"\1"}, "index: tensor 'a': stream must be one of before or 1, got 0"),
    ({"codecs": b"\0\x80", "more": b"\1"}, "index: tensor 'b': stream must be one of before, got 1"),
    ({"codecs": b"\0\x80", "more": b"\1", "numbers": b"\0\0"}, "index: stream 1 must continue one tensor, got 2"),
    (ONE_IN_TWO | {"codecs": b"\0\x80", "more": b"\2"}, "index: streams 0 to 1 must share the elements of a tensor"),
    (ONE_IN_TWO | {"codecs": b"\0\x80", "more": b"\0"}, "index: streams 0 to 1 must share the elements of a tensor"),
    (ONE_IN_TWO | {"codecs": b"\0\x80", "more": b"\1", "dtypes": b"\0\6"}, "index: streams 0 to 1 must share"),
    (ONE_IN_TWO | {"codecs": b"\0\x80", "more": varint(2**62)}, "index: streams 0 to 1 must share"),
    ({"lengths": b"\4\5"}, "index: stream 1: payload must lie in the 4 bytes left, got 5 bytes"),
    ({"lengths": b"\4\3"}, "index: stream 1: raw payload must have 4 bytes, got 3"),
    ({"payloads": [ONE, ONE + b"!"]}, "end: payloads must end where the index starts, at 25 bytes, got 24 bytes"),
    ({"payloads": [ONE, b"!" + ONE]}, "end: payloads must end where the index starts, at 25 bytes, got 24 bytes"),
    ({"payloads": [ONE, ONE], "crcs": bytes(8)}, "tensor 'a': CRC-32 must match: the file is damaged"),
    ({"sizes": varint(2**61) + b"\1"}, r"index: tensor 'a': shape must have fewer than 2\*\*62 bytes"),
    (
        TWO_IN_ONE | {"sizes": varint(2**59) + varint(2**59), "payloads": [ONE + ONE]},
        "index: stream 0: raw payload must have 4611686018427387904 bytes, got 8",
    ),
    (
        {"codecs": b"\0\1", "sizes": b"\1" + varint(1033)},
        "index: stream 1: must be at most 1032 times its 4 bytes, got 4132",
    ),
    ({"codecs": b"\0\2", "dtypes": b"\0\x0c"}, "index: stream 1: a bool tensor must not be sparse"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^<bytes>: (?:{message})"):
        load(file(**changes))


def test_the_frame_refused() -> None:
    body, packed = Fields().body(), version2._deflate(Fields().body(), 9)
    size = struct.pack("<I", len(packed))
    bombs = [bytes(1 << 20), b"\0\xff\xff\3" + b"\0\1a" * 100000]
    for data, message in [
        (closed(packed, ONE + ONE, struct.pack("<I", len(packed) + 9)), "index: must lie in the "),
        (closed(packed, ONE + ONE, struct.pack("<I", 2**32 - 1)), "index: must lie in the "),
        (closed(packed, ONE + ONE, bytes(4)), "index: CRC-32 must match"),
        (closed(packed + b"!", ONE + ONE, struct.pack("<I", len(packed) + 1)), "index: must be one whole deflate"),
        (closed(packed[:-1], ONE + ONE, struct.pack("<I", len(packed) - 1)), "index: must be one whole deflate"),
        (closed(b"\xff" * 9, ONE + ONE, struct.pack("<I", 9)), "index: must be a deflate stream: "),
        (closed(b"", b"", bytes(4)), "index: must be one whole deflate stream"),
        (file()[:23], "end: the file must have at least 24 bytes, got 23: it is cut off"),
        *((frame(bomb), "index: must inflate to at most ") for bomb in bombs),
    ]:
        with pytest.raises(ValueError, match=f"^<bytes>: {message}"):
            load(data)
    assert load(frame(body, level=0)).keys() == load(closed(packed, ONE + ONE, size)).keys()


@pytest.mark.parametrize("value", EDGES)
def test_every_integer_at_its_edges(value: int) -> None:
    """Refused, or it says what the file can hold."""
    number = varint(value)
    last = ONE_IN_TWO | {"codecs": b"\0\x80"}
    for name, data in {
        "metadata": file(metadata=number),
        "tensors": file(names=number + Fields().names[1:]),
        "name": file(names=b"\2\0" + number + b"a" + Fields().names[4:]),
        "size": file(sizes=b"\1" + number),
        "deflated size": file(sizes=b"\1" + number, codecs=b"\0\1"),
        "rans size": file(sizes=b"\1" + number, codecs=b"\0\3"),
        "number": file(numbers=b"\0" + number),
        "streams": file(count=number),
        "more": file(**(last | {"more": number})),
        "length": file(lengths=b"\4" + number),
        "first length": file(lengths=number + b"\4"),
        "index": closed(b"", ONE, struct.pack("<I", value % 2**32)),
    }.items():
        with pytest.raises(ValueError, match=r"^<bytes>: (header|index|end|tensor '.*'): "):
            assert not load(data), name


@pytest.mark.parametrize("name", [b"", b"a\0b", b"../x", b"/etc/passwd", b"__class__", "\u0436".encode(), b"x" * 65536])
def test_names_are_only_labels(name: bytes) -> None:
    data = frame(b"\0\1\0" + text(name) + b"\1\1\0\1\0\0\4" + struct.pack("<I", zlib.crc32(ONE)), ONE, level=0)
    assert list(load(data)) == [name.decode()]
    assert list(load(save({name.decode(): torch.ones(1)}))) == [name.decode()]


@pytest.mark.parametrize("length", [65537, 1 << 20])
def test_long_names_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"^<bytes>: index: length of tensor name must be at most 65536, got "):
        load(frame(b"\0\1\0" + varint(length) + b"x" * length + bytes(20), b"", level=0))
    with pytest.raises(ValueError, match=r"^save: name must be a str of at most 65536 bytes"):
        save({"x" * length: torch.ones(1)})


def test_streams_swapped_or_doubled() -> None:
    """Payloads in another order, or one twice: its checksum, or the end of the file, tells."""
    a, b = ONE, struct.pack("<f", 2)
    body = Fields(payloads=[a, b]).body()
    assert load(frame(body, a + b))["b"].item() == 2
    for payloads in (b + a, a + a, a + b + b, a, b""):
        with pytest.raises(ValueError, match=r"^<bytes>: (tensor 'a'|tensor 'b'|end|index)"):
            load(frame(body, payloads))


def many(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer{i}.bias": torch.randn(17 + i, generator=generator) for i in range(n)}


def test_small_tensors_share_a_stream() -> None:
    data = save(many(20))
    reader = Reader(io.BytesIO(data), len(data), "x")
    assert len(reader._index.streams) == 1
    assert len(data) < sum(len(save({name: t})) for name, t in many(20).items()) - 20 * 40
    for name, tensor in many(20).items():
        assert torch.equal(reader.get_tensor(name), tensor)
    one = reader.get_tensor("layer3.bias").zero_()
    assert not torch.equal(reader.get_tensor("layer3.bias"), one)
    assert load(data)["layer3.bias"].untyped_storage().nbytes() == 4 * 20


def test_hundreds_of_tensors_cost_few_bytes() -> None:
    ones = {f"layer{i // 10}.{i % 10}.num_batches_tracked": torch.tensor(7) for i in range(500)}
    assert len(save(ones)) < 1100


def test_the_same_bytes_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "BLOCK", 4000)
    monkeypatch.setattr(pools, "SMALL", 4000)
    tensors = many(30) | {f"w{i}": torch.randn(100, 50 + i) for i in range(4)} | {"mask": torch.rand(99, 99) < 0.1}
    files = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        files.append(save(tensors))
        assert all(torch.equal(t, tensors[name]) for name, t in load(files[-1]).items())
    assert files[0] == files[1] == files[2]


INDICES = [
    0,
    -1,
    56,
    slice(3, 9),
    slice(None),
    slice(50, None, 3),
    slice(9, 3),
    (slice(2, 5), 1),
    (4, slice(1, 3)),
    ...,
]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("block", [300, 1 << 22])
def test_slices(block: int, mmap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "BLOCK", block)
    monkeypatch.setattr(pools, "SMALL", min(block, pools.SMALL))
    weight, bias = torch.randn(57, 11), torch.randn(57)
    save_file({"w": weight, "b": bias, "s": torch.tensor(3), "e": torch.zeros(0, 3)}, tmp_path / "x.crest")
    with safe_open(tmp_path / "x.crest", mmap=mmap) as opened:
        assert (len(opened.entry("w").streams) > 5) == (block == 300)
        part = opened.get_slice("w")
        assert (part.get_shape(), part.get_dtype()) == ([57, 11], torch.float32)
        for index in INDICES:
            assert torch.equal(part[index], weight[index]), index
        assert torch.equal(opened.get_slice("b")[7:9], bias[7:9])
        assert opened.get_slice("s")[...].item() == 3
        assert opened.get_slice("e")[0:2].shape == (0, 3)
        for wrong in (57, -58):
            with pytest.raises(IndexError, match=r"^index must be in \[-57, 57\), got "):
                part[wrong]


def test_a_slice_reads_its_streams_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "BLOCK", 400)
    weight = torch.randn(40, 10)
    data = bytearray(save({"w": weight}))
    data[16] ^= 1  # in the first
    (tmp_path / "x.crest").write_bytes(data)
    with safe_open(tmp_path / "x.crest") as opened:
        assert torch.equal(opened.get_slice("w")[30:], weight[30:])
        for read in (lambda: opened.get_slice("w")[:5], lambda: opened.get_tensor("w")):
            with pytest.raises(ValueError, match=r"tensor 'w': CRC-32 must match: the file is damaged$"):
                read()


def test_the_checksum_of_the_whole_file() -> None:
    data = bytearray(save(many(3)))
    data[8] ^= 1
    with pytest.raises(ValueError, match=r"^<bytes>: header: CRC-32 of the file must match: it is damaged$"):
        load(bytes(data))


def test_mmap_refuses_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.crest"
    data = bytearray(save(many(3)))
    path.write_bytes(data)
    with safe_open(path, mmap=True) as opened:
        tensor = opened.get_tensor("layer0.bias")
    tensor.add_(1)  # ours, not the file's
    assert path.read_bytes() == data
    data[20] ^= 1
    for wrong in (bytes(data), b"", bytes(data[:40])):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"x\.crest: "), safe_open(path, mmap=True) as opened:
            opened.get_tensor("layer0.bias")
