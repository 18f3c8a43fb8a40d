"""What a file holds, and the rules that its numbers obey in every version. See docs/format.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from crest_ext.container.fields import refuse

DTYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.bfloat16,
    4: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    8: torch.uint8,
    9: torch.uint16,
    10: torch.uint32,
    11: torch.uint64,
    12: torch.bool,
    13: torch.float8_e4m3fn,
    14: torch.float8_e5m2,
}
DTYPE_IDS = {dtype: number for number, dtype in DTYPES.items()}
RAW, DEFLATED, SPARSE, RANS, SCALED, MIXED = range(6)
CODECS = {RAW: "raw", DEFLATED: "deflated", SPARSE: "sparse", RANS: "rans", SCALED: "scaled", MIXED: "mixed"}

EXPANSION = 1032  # What deflate can reach; rans could do more. No stream may be larger than this times its payload.
MIXED_DTYPES = tuple(DTYPES[i] for i in (0, 1, 4, 5, 6, 7, 8, 12))
MIXED_EXPANSION = EXPANSION // 4  # elements a byte: decoding one takes long, whatever its bytes
MAX_RANK = 64
MAX_BYTES = 1 << 62


@dataclass(frozen=True)
class Stream:
    """`length` bytes at `offset` of the file: `numel` elements in `codec`."""

    dtype: torch.dtype
    codec: int
    numel: int
    length: int
    crc: int
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes before the codec: a bool is one bit."""
        return -(-self.numel // 8) if self.dtype == torch.bool else self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Entry:
    """One tensor as the index describes it: alone in one stream or several, or one of many in one stream."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    streams: tuple[Stream, ...]
    start: int = 0  # elements of other tensors before it in its stream

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def codec(self) -> int:
        return self.streams[0].codec

    @property
    def length(self) -> int:
        """Bytes of its streams in the file; others may share them."""
        return sum(stream.length for stream in self.streams)


@dataclass(frozen=True)
class Index:
    entries: dict[str, Entry]
    streams: tuple[Stream, ...] = ()  # in the order of the file, without gaps
    metadata: dict[str, str] = field(default_factory=dict)
    version: int = 0
    end: bytes = b""  # what follows the last payload


def dtype_of(number: int, where: str) -> torch.dtype:
    if number not in DTYPES:
        refuse(where, f"dtype must be one of 0 to {max(DTYPES)}, got {number}: from a newer crest_ext?")
    return DTYPES[number]


def check_codec(codec: int, where: str) -> int:
    if codec not in CODECS:
        refuse(where, f"codec must be one of 0 to {max(CODECS)}, got {codec}: from a newer crest_ext?")
    return codec


def check_rank(rank: int, where: str) -> int:
    if rank > MAX_RANK:
        refuse(where, f"rank must be at most {MAX_RANK}, got {rank}")
    return rank


def check_shape(shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
    """Torch multiplies sizes and strides in 64 bits, those of empty tensors too."""
    if math.prod(size for size in shape if size) * dtype.itemsize >= MAX_BYTES:
        refuse(where, f"shape must have fewer than 2**62 bytes, got {shape}")


def check_stream(stream: Stream, end: int, where: str) -> Stream:
    """A stream lies before `end` and is as large as its codec allows."""
    left, length, nbytes = end - stream.offset, stream.length, stream.nbytes
    if length > left:
        refuse(where, f"payload must lie in the {left} bytes left, got {length} bytes")
    if stream.numel == 0 and length:
        refuse(where, f"an empty tensor must have an empty payload, got {length} bytes")
    if stream.codec == RAW and length != nbytes:
        refuse(where, f"raw payload must have {nbytes} bytes, got {length}")
    if stream.codec == SPARSE and stream.dtype == torch.bool:
        refuse(where, "a bool tensor must not be sparse")
    if stream.codec == SCALED and stream.dtype not in (torch.float32, torch.float64):
        refuse(where, f"a scaled tensor must be float32 or float64, got {str(stream.dtype).removeprefix('torch.')}")
    if stream.codec == MIXED and stream.dtype not in MIXED_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in MIXED_DTYPES)
        refuse(where, f"a mixed tensor must be {allowed}, got {str(stream.dtype).removeprefix('torch.')}")
    if stream.codec == MIXED and stream.numel > MIXED_EXPANSION * length:
        refuse(
            where, f"mixed must have at most {MIXED_EXPANSION} elements a byte, got {stream.numel} in {length} bytes"
        )
    if nbytes > EXPANSION * length:
        refuse(where, f"must be at most {EXPANSION} times its {length} bytes, got {nbytes}")
    return stream
