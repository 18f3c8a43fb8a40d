"""What a call leaves behind. A leak of a few bytes is one of megabytes where it keeps results from being used again."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

import crest_ext
from samples import SAMPLES

FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
CALLS = 3000  # so many that what something else allocates meanwhile, once, is little for each


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def in_use() -> int:
    """Bytes that malloc has given away and not got back."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
@pytest.mark.parametrize("op", sorted(SAMPLES))
def test_calls_leave_nothing_behind(op: str) -> None:
    samples = SAMPLES[op](torch.float32, "cpu")
    args = next(s for s in samples if all(a.numel() for a in s if isinstance(a, Tensor)))
    function = getattr(crest_ext, op)
    with torch.no_grad():
        for _ in range(20):
            function(*args)
        before = in_use()
        for _ in range(CALLS):
            function(*args)
        assert (in_use() - before) / CALLS < 8
