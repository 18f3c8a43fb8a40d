"""The old file survives kill -9 at every write, a full disk, a folder without permission, and another writer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crest_ext.container import load_file, load_model, safe_open, save_file, save_model

# Saves in children that die at the n-th call that changes the file system, until one child gets through.
KILLED = """
import io, os, pathlib, sys, torch
from crest_ext.container import load_file, pools, save_file

torch.set_num_threads(1)
pools.BLOCK = 400
path = sys.argv[1]
tensors = {f"w{i}": torch.full((30, 20), float(i)) + torch.rand(30, 20) for i in range(3)}

class Dying:
    # A file that dies before its n-th change, and half way through a write.
    def __init__(self, file, n):
        self.file, self.left = file, n
    def step(self):
        self.left -= 1
        if self.left == 0:
            self.file.flush()
            os.kill(os.getpid(), 9)
    def write(self, data):
        self.step()
        self.file.write(memoryview(data)[: len(data) // 2])
        self.step()
        return self.file.write(memoryview(data)[len(data) // 2 :])
    def seek(self, *args):
        return self.file.seek(*args)
    def flush(self):
        self.step()
        self.file.flush()
    def fileno(self):
        self.step()
        return self.file.fileno()
    def __enter__(self):
        return self
    def __exit__(self, *args):
        self.file.close()

for n in range(1, 200):
    child = os.fork()
    if not child:
        dying, original, replace = [], pathlib.Path.open, pathlib.Path.replace
        def opened(self, mode="r", *args, **kwargs):
            file = original(self, mode, *args, **kwargs)
            if mode != "xb":
                return file
            dying.append(Dying(file, n))
            return dying[0]
        def renamed(self, target):
            dying[0].file = io.BytesIO()
            dying[0].step()
            return replace(self, target)
        pathlib.Path.open, pathlib.Path.replace = opened, renamed
        save_file(tensors, path)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == -9, (n, code)
    assert load_file(path)["x"].tolist() == [0, 0, 0], n
assert n > 30, n
assert sorted(load_file(path)) == ["w0", "w1", "w2"]
print(n)
"""


def run(program: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_every_write(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "x.crest")
    assert int(run(KILLED, tmp_path / "x.crest")) > 30


FULL = """
import resource, signal, sys, torch
from crest_ext.container import save_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    save_file({"x": torch.rand(100000)}, sys.argv[1])
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("limit", [0, 1, 15, 4096, 100000, 300000])
def test_disk_full(limit: int, tmp_path: Path) -> None:
    """No file may grow beyond the limit: a disk that fills up at that byte."""
    path = tmp_path / "x.crest"
    save_file({"x": torch.zeros(3)}, path)
    assert run(FULL, path, limit).strip() == "27"  # EFBIG
    assert torch.equal(load_file(path)["x"], torch.zeros(3))
    assert list(tmp_path.iterdir()) == [path]


READ_ONLY = """
import os, sys, torch
from crest_ext.container import save_file
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    save_file({"x": torch.ones(3)}, sys.argv[1])
except PermissionError:
    print("refused")
"""


def test_read_only_folder(tmp_path: Path) -> None:
    """As root, which may write anywhere, the child becomes nobody first; the folders above must let nobody through."""
    path = tmp_path / "in" / "x.crest"
    path.parent.mkdir()
    save_file({"x": torch.zeros(3)}, path)
    path.parent.chmod(0o555)
    changed = {folder: folder.stat().st_mode for folder in tmp_path.parents if folder.stat().st_uid == os.getuid()}
    changed[tmp_path] = tmp_path.stat().st_mode
    try:
        for folder, mode in changed.items():
            folder.chmod(mode | 0o111)
        assert run(READ_ONLY, path).strip() == "refused"
    finally:
        for folder, mode in changed.items():
            folder.chmod(mode)
        path.parent.chmod(0o755)
    assert torch.equal(load_file(path)["x"], torch.zeros(3))
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_nothing_and_a_loop(tmp_path: Path) -> None:
    link, loop = tmp_path / "link.crest", tmp_path / "loop.crest"
    link.symlink_to(tmp_path / "later.crest")
    save_file({"x": torch.ones(3)}, link)
    assert link.is_symlink()
    assert (tmp_path / "later.crest").is_file()
    loop.symlink_to(loop)
    with pytest.raises((OSError, RuntimeError)):
        save_file({"x": torch.ones(3)}, loop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["later.crest", "link.crest", "loop.crest"]


WRITER = """
import sys, torch
from crest_ext.container import save_file
for i in range(40):
    save_file({"x": torch.full((2000,), float(sys.argv[2])), "n": torch.arange(i + 1)}, sys.argv[1])
"""


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    """Whatever is read is one of the two, whole; through the map too."""
    path = tmp_path / "x.crest"
    save_file({"x": torch.full((2000,), 1.0)}, path)
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, value]) for value in ("1", "2")]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        with safe_open(path, mmap=reads % 2 == 0) as file:
            values = file.get_tensor("x").unique().tolist()
            assert values in ([1.0], [2.0])
        reads += 1
    assert reads > 10
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_refused_file_leaves_the_model(tmp_path: Path) -> None:
    """Damage anywhere, found early or late: no parameter and no buffer has changed."""
    torch.manual_seed(0)
    path = tmp_path / "x.crest"
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    save_model(torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4)), path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        with pytest.raises(ValueError, match=r"x\.crest: "):
            load_model(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
