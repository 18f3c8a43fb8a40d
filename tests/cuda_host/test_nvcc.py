"""What nvcc makes of the kernels: no warnings, no spills, and registers and shared memory within a budget."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from host import CUDA

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@dataclass(frozen=True)
class Budget:
    """Of one kernel, whatever its template arguments."""

    threads: int  # a block
    registers: int  # a thread
    occupancy: float  # how much of the 2048 threads a multiprocessor runs at once, if all is used up
    shared: int = 0  # bytes a block

    def fits(self, shared_memory: int) -> bool:
        by_registers = 65536 // (self.registers * self.threads)
        by_shared = shared_memory // (self.shared + 1024)  # the system keeps 1 KiB a block
        return min(by_registers, by_shared) * self.threads >= self.occupancy * 2048


BUDGETS = {
    "group_runs_kernel": Budget(threads=256, registers=64, occupancy=0.5, shared=64),
    "group_columns_kernel": Budget(threads=256, registers=64, occupancy=0.5, shared=2 << 10),
    "group_finish_kernel": Budget(threads=256, registers=64, occupancy=0.5),
    "Shrink": Budget(threads=256, registers=64, occupancy=0.5),  # an elementwise_kernel that divides 64-bit indices
    "LocalResponseNormTo": Budget(threads=256, registers=64, occupancy=0.5),  # divides as well
    "MaxPool2dTo": Budget(threads=256, registers=64, occupancy=0.5),  # divides as well
    "depthwise_conv2d_kernel": Budget(threads=256, registers=64, occupancy=0.5),
    "depthwise_conv2d_grad_weight_kernel": Budget(threads=256, registers=64, occupancy=0.5, shared=2 << 10),
    "elementwise_kernel": Budget(threads=256, registers=40, occupancy=0.75),
    "masked_linear_kernel": Budget(threads=256, registers=64, occupancy=0.5),
    # For float64; the other types, with 24 KiB and 64 registers, reach 0.5.
    "masked_linear_grad_weight_kernel": Budget(threads=256, registers=80, occupancy=0.375, shared=45 << 10),
    # A thread holds 16 sums, the operands of the next products and the next slice: few threads keep the units busy.
    # It is meant for so few rows that there is hardly a second block for each multiprocessor.
    "masked_product_kernel": Budget(threads=512, registers=128, occupancy=0.25, shared=40 << 10),
    "separable_conv2d_kernel": Budget(threads=256, registers=64, occupancy=0.5, shared=9 << 10),
    "sparse_conv2d_kernel": Budget(threads=256, registers=64, occupancy=0.5),
    "stem_conv2d_kernel": Budget(threads=256, registers=64, occupancy=0.5),
    "sparse_linear_kernel": Budget(threads=256, registers=64, occupancy=0.5, shared=12 << 10),
    # Of the largest of its three blocks.
    "truncated_svd_kernel": Budget(threads=512, registers=64, occupancy=0.5, shared=48 << 10),
}
# The sources whose ops take nothing else.
FLOAT32 = {"local_response_norm", "max_pool2d", "separable_conv2d", "stem_conv2d"}
SHARED_MEMORY = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}  # bytes a multiprocessor has
KERNEL = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers[^\n]*?(?:, (?P<shared>\d+) bytes smem)?[^\n]*\n",
    re.DOTALL,
)


def compile_one(source: Path, arch: str, folder: Path) -> str:
    """What ptxas says about each kernel."""
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={arch}", "-Xptxas", "-v", "-Werror", "all-warnings", "-cubin"]
    done = subprocess.run(
        [*command, source, "-o", folder / f"{source.stem}.{arch}.cubin"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("arch", ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_80", "sm_100"))])
def test_kernels_keep_within_their_budgets(arch: str, tmp_path: Path) -> None:
    sources = sorted(CUDA.glob("*.cu"))
    assert sources
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda source: compile_one(source, arch, tmp_path), sources))
    over, seen = [], set()
    for source, log in zip(sources, logs, strict=True):
        kernels = list(KERNEL.finditer(log))
        # At least one for each of the four element types (or three sizes of two), or the one that the op has.
        least = 1 if source.stem in FLOAT32 else 4
        assert len(kernels) == log.count("Compiling entry function") >= least, f"{source.name}\n{log}"
        for kernel in kernels:
            name = next((n for n in BUDGETS if f"{len(n)}{n}" in kernel["symbol"]), None)
            assert name, f"{kernel['symbol']} has no budget: add it to BUDGETS"
            seen.add(name)
            used = {key: int(kernel[key] or 0) for key in ("frame", "stores", "loads", "registers", "shared")}
            budget = BUDGETS[name]
            allowed = {"frame": 0, "stores": 0, "loads": 0, "registers": budget.registers, "shared": budget.shared}
            over += [(kernel["symbol"], key, n, allowed[key]) for key, n in used.items() if n > allowed[key]]
    assert over == [], "uses more than its budget"
    assert seen == set(BUDGETS), "a budget without a kernel"


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_budgets_give_the_stated_occupancy(arch: str) -> None:
    assert [name for name, budget in BUDGETS.items() if not budget.fits(SHARED_MEMORY[arch])] == []
