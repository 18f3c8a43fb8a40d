"""Builds the CUDA kernels as C++ for the CPU, and runs them there. See runner/grid.h for how."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "csrc" / "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of csrc/dtype.h
FORWARD, REVERSE, RANDOM = 0, 1, 7  # the order in which the threads of a block take turns; from 2 on a seed

COMMON = ["-std=c++17", "-O1", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Of -fsanitize=undefined what finds faults of kernels: all of it takes twice as long to compile.
CHECKED = ["-fsanitize=address,alignment,bounds,bool,shift,signed-integer-overflow", "-fno-sanitize-recover=all"]
CHECKED += ["--param", "asan-instrumentation-with-call-threshold=0"]  # calls: faster to compile


class HostError(Exception):
    """A kernel was found to be at fault; the text says how."""


@dataclass
class Case:
    """One call of an op."""

    op: str
    dtype: torch.dtype
    sizes: Sequence[int]
    arrays: Sequence[Tensor | None]  # as in the op's struct; the kernel gets copies
    numbers: Sequence[float] = ()
    small: bool = False  # small blocks and grids (float32 and float16), else what the launcher takes
    order: int = FORWARD
    offset: int = 0  # elements by which each array begins after a 16-byte boundary
    last_only: bool = False  # run the last block alone
    zeros: Mapping[int, int] = field(default_factory=dict)  # how many elements of zero come before array i

    def encode(self) -> bytes:
        def numbers(values: Sequence[float]) -> str:
            return " ".join(map(str, [len(values), *values]))

        raw = [b"" if a is None else a.contiguous().view(torch.uint8).numpy().tobytes() for a in self.arrays]
        sizes = [-1 if a is None else len(r) for a, r in zip(self.arrays, raw, strict=True)]
        items = [0 if a is None else a.itemsize for a in self.arrays]
        zeros = [self.zeros.get(i, 0) * item for i, item in enumerate(items)]
        offsets = [self.offset * item for item in items]
        fields = [self.op, DTYPES.index(self.dtype), int(self.small), self.order, int(self.last_only)]
        head = " ".join([*map(str, fields), *map(numbers, (self.sizes, self.numbers, sizes, zeros, offsets))])
        return head.encode() + b"\n" + b"".join(raw)

    def decode(self, results: bytes, at: int) -> tuple[list[Tensor | None], int]:
        arrays: list[Tensor | None] = []
        for a in self.arrays:
            size = 0 if a is None else a.numel() * a.itemsize
            flat = torch.frombuffer(bytearray(results[at : at + size]), dtype=torch.uint8) if size else None
            arrays.append(a if flat is None or a is None else flat.view(a.dtype).view(a.shape))
            at += size
        return arrays, at


def toolkit() -> Path | None:
    """The include folder of the CUDA toolkit: under $CUDA_HOME, or beside nvcc."""
    homes = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    if nvcc := shutil.which("nvcc"):
        says = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
        homes += [Path(top) for top in re.findall(r"^#\$ TOP=(.*)$", says, re.MULTILINE)]
    return next((home / "include" for home in homes if (home / "include" / "cuda_runtime.h").exists()), None)


def why_not() -> str | None:
    """Why kernels cannot be run here, if so."""
    if platform.machine() != "x86_64":
        return "the host runner switches stacks in x86-64 assembly"
    if shutil.which("g++") is None:
        return "no g++"
    return None if toolkit() else "no CUDA headers: neither $CUDA_HOME nor nvcc"


@dataclass(frozen=True)
class Driver:
    """driver.cpp and the kernels, compiled. Calls go through files in `folder`, which is one process's own."""

    program: Path
    folder: Path

    @staticmethod
    def build(folder: Path, race: bool) -> Path:
        """The program, with the checker of races or else with ASan and UBSan; as it is, if it is there."""
        program = folder / "driver"
        if program.exists():
            return program
        folder.mkdir(exist_ok=True)
        kernels = [HERE / "driver.cpp", *sorted(CUDA.glob("*.cu"))]
        runner = [HERE / "runner" / f"{name}.cpp" for name in ("fiber", "grid", *(["race"] if race else []))]
        instrument = ["-fsanitize=thread"] if race else CHECKED
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [pool.submit(compile_one, source, folder, instrument) for source in kernels]
            objects += [pool.submit(compile_one, source, folder, [] if race else CHECKED) for source in runner]
        linked = [] if race else CHECKED  # not with libtsan: race.cpp takes its place
        run(["g++", *linked, "-no-pie", "-o", program, *(o.result() for o in objects)])
        return program

    def __call__(self, *cases: Case) -> list[list[Tensor | None]]:
        """The arrays of each case after its call. Raises HostError for what a sanitizer or the runner found."""
        asked, answered = self.folder / "cases", self.folder / "results"
        asked.write_bytes(b"".join(case.encode() for case in cases))
        done = subprocess.run([self.program, asked, answered], capture_output=True, text=True)
        if done.returncode:
            raise HostError(done.stderr + self._places(done.stderr))
        results, at, arrays = answered.read_bytes(), 0, []
        for case in cases:
            after, at = case.decode(results, at)
            arrays.append(after)
        assert at == len(results)
        return arrays

    def _places(self, message: str) -> str:
        """Where the code addresses of the race checker's message are."""
        codes = re.findall(r"^cuda_host: code (\w+)$", message, re.MULTILINE)
        return run(["addr2line", "-Cfpie", self.program, *codes]) if codes else ""


def compile_one(source: Path, folder: Path, flags: list[str]) -> Path:
    made = folder / f"{source.stem}{source.suffix}.o"
    include = ["-isystem", HERE / "runner" / "include", "-isystem", toolkit()]
    run(["g++", *COMMON, *flags, *include, "-fno-pie", "-x", "c++", "-c", source, "-o", made])
    return made


def run(command: Sequence[str | Path | None]) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
