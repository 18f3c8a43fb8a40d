"""What a file may cost: memory and time of a hostile one, memory of a save."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOSTILE = """
import random, resource, struct, sys, time, zlib
import torch
sys.path.insert(0, sys.argv[1])
from test_malformed import entry, file as version1, sparse, RANS, DEFLATED, SPARSE, ONE, deflate
from test_version2 import closed, frame, text
from crest_ext import container
from crest_ext.container.fields import varint

torch.set_num_threads(1)
pages = int(open("/proc/self/statm").read().split()[0])
nothing = b"\\1\\0\\0\\0" + bytes(4)  # one empty stream
pairs = [bytes([c, d]) for c in range(1, 101) for d in range(1, 128)]  # names that differ in their last byte
names = b"".join(bytes([i > 0 and pairs[i - 1][0] == p[0]]) + text(p if not i or pairs[i - 1][0] != p[0] else p[1:])
                 for i, p in enumerate(pairs))
count = len(pairs)
few = 4000
first = b"".join(bytes([i > 0 and pairs[i - 1][0] == p[0]]) + text(p if not i or pairs[i - 1][0] != p[0] else p[1:])
                 for i, p in enumerate(pairs[:few]))
files = {
    "names": frame(b"\\0" + varint(count) + names + b"\\1" * count + bytes(count) + bytes(count) + nothing, b""),
    "fewer names": frame(b"\\0" + varint(few) + first + b"\\1" * few + bytes(2 * few) + nothing, b""),
    "ranks": frame(b"\\0\\1\\0" + text(b"a") + b"\\x40" + b"\\0" * 64 + b"\\0" + nothing, b""),
    "metadata": frame(varint(20000) + bytes(40000), b""),
    "a megabyte": frame(bytes(960000), b""),
    "zeros": frame(b"\\0\\1\\0" + text(b"a") + b"\\1" + varint(1032 * 235) + b"\\0\\1\\0\\1" + varint(950) +
                   struct.pack("<I", zlib.crc32(b"\\xff" * 950)), b"\\xff" * 950),
    "deflate": version1(entry(deflate(bytes(1 << 22))[:950], (258000,), DEFLATED)),
    "deflate that fits": version1(entry(deflate(bytes(900 * 1000)), (225000,), DEFLATED)),
    "sparse": version1(entry(sparse(5, bytes(5), ONE * 5) + bytes(900), (200000,), SPARSE)),
    "sparse count": version1(entry(varint(200000) + b"\\1\\0" + deflate(bytes(800000)), (200000,), SPARSE)),
    "rans": version1(entry(bytes([5, 0, 1]) + bytes(900) + b"\\0\\0\\1\\0", (230000,), RANS)),
    "rans lag": version1(entry(bytes([5, 0x80, 0xff, 0x7f, 1]) + bytes(900) + b"\\0\\0\\1\\0", (230000,), RANS)),
    "rans values": version1(entry(bytes([4, 0xC0, 0xff, 3]) + b"\\x11" * 900 + b"\\0\\0\\1\\0", (230000,), RANS)),
}
draw = random.Random(0)
seeds = [container.save({"w": (torch.rand(9, 9) < 0.4) * torch.rand(9, 9), "b": torch.rand(5), "n": torch.tensor(3)}),
         version1(entry(sparse(1, b"\\1", ONE), (5,), SPARSE))]
for i in range(2000):
    data = bytearray(seeds[i % 2])
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(16, len(data))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
    files[f"mutant {i}"] = bytes(data)
limit = 4096 * pages + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
refused = 0
for name, data in files.items():
    start = time.process_time()
    try:
        container.load(data)
    except ValueError as error:
        assert str(error).startswith("<bytes>: "), name
        refused += 1
    assert time.process_time() - start < 1, name
    assert name.startswith("mutant") or len(data) <= 1 << 10, (name, len(data))
print(refused, len(files))
"""


def run(program: str, *args: object) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_files_are_cheap() -> None:
    """64 MB of address space more than before and 1 s of CPU, whatever 1 kB says."""
    refused, total = run(HOSTILE, Path(__file__).parent)
    assert refused > 0.9 * total


# ru_maxrss is a high-water mark: the model is there before it is first read.
SAVING = """
import resource, sys, torch
from crest_ext.container import load_file, save_file

torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
save_file({"warm": torch.rand(1 << 16)}, sys.argv[1])
tensors = {"dense": torch.randn(3 << 10, 1 << 12), "sparse": torch.randn(1 << 11, 1 << 11), "flat": torch.rand(1 << 23)}
tensors["sparse"] *= torch.rand(1 << 11, 1 << 11) < 0.1
tensors |= {f"small{i}": torch.randn(64) for i in range(200)}
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
open("/proc/self/clear_refs", "w").write("5")
before = resident()
save_file(tensors, sys.argv[1])
print((resident() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("threads", [1, 4])
def test_memory_of_a_save(threads: int, tmp_path: Path) -> None:
    """96 MB of tensors, dense and sparse, take at most 64 MB more to be written."""
    assert run(SAVING, tmp_path / "x.crest", threads)[0] <= 64
