"""Kernels run outside of Python: a program that reads calls from a file, makes them, and writes the arrays back."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of csrc/dtype.h


@dataclass(frozen=True)
class Case:
    """One call of an op. In the file: a line of text with all but the arrays, then the arrays."""

    op: str
    dtype: torch.dtype
    sizes: Sequence[int]
    arrays: Sequence[Tensor | None]  # in the order of the op's struct; the kernel gets copies
    numbers: Sequence[float] = ()
    options: Sequence[int] = ()  # the program's own

    def encode(self) -> bytes:
        def counted(values: Sequence[float]) -> list[Any]:
            return [len(values), *values]

        raw = [b"" if a is None else a.contiguous().view(torch.uint8).numpy().tobytes() for a in self.arrays]
        sizes = [-1 if a is None else len(r) for a, r in zip(self.arrays, raw, strict=True)]
        line = [self.op, DTYPES.index(self.dtype), *self.options]
        line += [*counted(self.sizes), *counted(self.numbers), *counted(sizes)]
        return " ".join(map(str, line)).encode() + b"\n" + b"".join(raw)

    def decode(self, results: bytes) -> tuple[list[Tensor | None], bytes]:
        """The arrays after the call, and the results of the calls after this one."""
        arrays: list[Tensor | None] = []
        for a in self.arrays:
            size = 0 if a is None else a.numel() * a.itemsize
            flat = torch.frombuffer(bytearray(results[:size]), dtype=torch.uint8) if size else None
            arrays.append(a if flat is None or a is None else flat.view(a.dtype).view(a.shape))
            results = results[size:]
        return arrays, results


def call(program: Sequence[str | Path], folder: Path, cases: Sequence[Case]) -> list[list[Tensor | None]]:
    """The arrays of each case after its call. `program` is a command; it gets two file names more."""
    asked, answered = folder / "cases", folder / "results"
    asked.write_bytes(b"".join(case.encode() for case in cases))
    run = subprocess.run([*program, asked, answered], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results, arrays = answered.read_bytes(), []
    for case in cases:
        after, results = case.decode(results)
        arrays.append(after)
    assert not results
    return arrays


def kernel_flags(isa: str) -> list[str]:
    """The compiler's flags for csrc/cpu in one instruction set: those of CMakeLists.txt."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    own = re.search(rf"set\(isa_{isa} ([^)]*)\)", cmake)
    shared = re.search(r"PRIVATE (-O3.*?) \$\{isa_", cmake)
    assert shared
    return ["-std=c++17", *shared[1].split(), *(own[1].split() if own else []), f"-DCREST_ISA={isa}"]


def defined_elsewhere(isa: str, objects: Sequence[Path]) -> list[str]:
    """The symbols these objects define outside of crest::<isa>."""
    nm = ["nm", "--defined-only", "--extern-only", *objects]
    out = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    defined = re.findall(r"^[0-9a-f]+ \S (.*)$", out, re.MULTILINE)
    assert len(defined) >= len(objects)
    mangled = re.compile(rf"_ZZ?NK?5crest{len(isa)}{isa}")  # crest::<isa>::, and lambdas in its functions
    return [name for name in defined if not mangled.match(name)]
