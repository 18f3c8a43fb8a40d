from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crest_ext.augment import Augment
from crest_ext.methods import Ensemble
from crest_ext.train import LogitCache

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(11) % 4
FILES = ("images.bin", "logits.bin")


class Member(nn.Module):
    """A linear teacher that counts its batches."""

    def __init__(self, seed: int = 0, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(192, classes)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x.float().flatten(1) / 255)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Made(NamedTuple):
    cache: LogitCache
    member: Member


def make(folder: Path, **kwargs: Any) -> Made:
    """5 batches a pass, 3 passes."""
    member = kwargs.pop("member", None) or Member()
    defaults = {"images": IMAGES, "labels": LABELS, "passes": 3, "batch_size": 2, "classes": 4}
    defaults |= {"augment": Augment(smallest=6), "teachers": Ensemble([member])}
    return Made(LogitCache(folder, **(defaults | kwargs)), member)


class Deep(nn.Module):
    """What it answers depends on attributes and a buffer that are in no state_dict."""

    def __init__(self, slope: float = 0.01, dtype: torch.dtype = torch.float32, shift: float = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        leaky = nn.LeakyReLU(slope)
        self.layers = nn.Sequential(nn.Linear(192, 64), leaky, nn.Linear(64, 64), leaky, nn.Linear(64, 4))
        self.dtype = dtype
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.layers(x.float().flatten(1) / 255) + self.shift


def damage(folder: Path, name: str, batch: int) -> None:
    """Zeros, as a machine that lost its power may leave them: the length is there and the content is not."""
    with (folder / name).open("r+b") as file:
        step = (folder / name).stat().st_size // 15
        file.seek(batch * step)
        file.write(bytes(step))


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished cache, not to be changed."""
    folder = tmp_path_factory.mktemp("cache") / "whole"
    make(folder).cache.write()
    before = contents(folder)
    yield folder
    assert contents(folder) == before


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_batches_are_augmented_images_with_the_logits_of_these_very_images(whole: Path) -> None:
    cache, member = make(whole)
    batches = list(cache)
    assert len(batches) == len(cache) == 15
    assert member.calls == 2  # for the comparison, when it was made and at the start
    for x, y, z in batches:
        assert (x.shape, y.shape, z.shape) == ((2, 3, 8, 8), (2,), (2, 4))
        assert (x.dtype, y.dtype, z.dtype) == (torch.uint8, torch.int64, torch.float32)
        assert torch.equal(z, member(x))


def test_every_pass_has_each_image_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 3, 8, 8).contiguous()  # told by colour
    eleven: dict[str, Any] = {"classes": 11, "member": Member(classes=11)}
    cache, _ = make(tmp_path, images=images, labels=torch.arange(11), augment=Augment(0, 0, 0, 0, 0, 6), **eleven)
    cache.write()
    y = torch.stack([batch.y for batch in cache]).view(3, 10)
    x = torch.stack([batch.x for batch in cache]).view(3, 10, 3, 8, 8)
    assert all(len(order.unique()) == 10 for order in y)
    assert len({tuple(order.tolist()) for order in y}) == 3
    assert torch.equal(x[:, :, 0, 0, 0].long(), y)


def test_size_is_known_before_it_is_written(tmp_path: Path) -> None:
    cache, _ = make(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    nbytes = cache.nbytes
    cache.write()
    assert sum(map(len, contents(tmp_path / "x"))) == nbytes
    assert nbytes == 15 * 2 * (192 + 8 + 4 * 4) + 15 * 4


def test_the_papers_cache_has_20_gigabytes(tmp_path: Path) -> None:
    images, labels = torch.zeros(40_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(40_000).long()
    cache = LogitCache(tmp_path, images, labels, Ensemble([Member()]))
    assert cache.nbytes == 160 * 312 * (128 * (3072 + 8 + 40) + 4)


def test_same_seed_same_bytes_and_another_seed_others(whole: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        make(tmp_path / name, seed=seed).cache.write()
    assert contents(tmp_path / "same") == contents(whole)
    assert contents(tmp_path / "other")[0] != contents(whole)[0]


def test_progress_begins_with_what_is_there(copy: Path) -> None:
    os.truncate(copy / "logits.bin", (copy / "logits.bin").stat().st_size * 12 // 15)
    calls = []
    make(copy).cache.write(lambda *args: calls.append(args))
    assert calls == [(12, 15), (13, 15), (14, 15), (15, 15)]


def test_a_finished_cache_is_not_written_again(copy: Path, whole: Path) -> None:
    cache, member = make(copy)
    assert cache.write() == 0
    assert member.calls == 2  # for the comparison
    assert contents(copy) == contents(whole)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1), st.floats(0, 1))
def test_goes_on_wherever_it_was_cut(whole: Path, tmp_path_factory: pytest.TempPathFactory, a: float, b: float) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("cut") / "copy"))
    batches = 15
    for name, share in zip(FILES, (a, b), strict=True):
        size = (folder / name).stat().st_size
        os.truncate(folder / name, int(share * size))
        batches = min(batches, int(share * size) * 15 // size)
    cache, member = make(folder)
    calls = member.calls
    assert cache.write() == 0
    assert contents(folder) == contents(whole)
    assert member.calls - calls == 15 - batches + (batches > 0)  # what was whole is not computed again


@pytest.mark.parametrize("tail", [b"", b"x"])
@pytest.mark.parametrize("batch", [0, 7, 14])
@pytest.mark.parametrize("name", FILES)
def test_makes_a_damaged_batch_again(copy: Path, whole: Path, name: str, batch: int, tail: bytes) -> None:
    damage(copy, name, batch)
    with (copy / name).open("ab") as file:
        file.write(tail)
    cache, member = make(copy)
    calls: list[tuple[int, int]] = []
    assert cache.write(lambda *args: calls.append(args)) == 1
    assert calls == [(14, 15), (15, 15)]
    assert contents(copy) == contents(whole)
    assert member.calls == 3  # two are for the comparison


def test_makes_all_batches_again_and_goes_on(copy: Path, whole: Path) -> None:
    for batch in range(15):
        damage(copy, FILES[batch % 2], batch)
    os.truncate(copy / "images.bin", (copy / "images.bin").stat().st_size - 1)
    cache, member = make(copy)
    assert cache.write() == 14
    assert contents(copy) == contents(whole)
    assert member.calls == 15


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_logit_cache import make

def show(whole, total):
    print(whole, flush=True)
    sys.stdin.readline()

make(Path(sys.argv[2])).cache.write(show)
"""


def test_nothing_is_lost_when_the_process_is_killed(whole: Path, tmp_path: Path) -> None:
    folder, reached = tmp_path / "cache", []
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin
        assert child.stdout
        for line in child.stdout:
            reached.append(int(line))
            if reached[-1] == 9:
                child.send_signal(signal.SIGKILL)
                break
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.wait() == -signal.SIGKILL
    assert reached == list(range(10))
    with pytest.raises(ValueError, match=r"must hold 15 batches, got 9: call write\(\) to go on$"):
        next(iter(make(folder).cache))
    cache, member = make(folder)
    cache.write()
    assert member.calls == 8  # two are for the comparison
    assert contents(folder) == contents(whole)


def test_a_second_writer_waits_for_the_first(whole: Path, tmp_path: Path) -> None:
    (first, _), (second, member) = make(tmp_path / "x"), make(tmp_path / "x")
    halfway, go_on = threading.Event(), threading.Event()

    def pause(done: int, _: int) -> None:
        if done == 7:
            halfway.set()
            assert go_on.wait(60)

    writers = [threading.Thread(target=first.write, args=(pause,)), threading.Thread(target=second.write)]
    writers[0].start()
    assert halfway.wait(60)
    writers[1].start()
    writers[1].join(0.2)
    assert writers[1].is_alive()
    go_on.set()
    for writer in writers:
        writer.join(60)
    assert member.calls == 1  # for the comparison
    assert contents(tmp_path / "x") == contents(whole)


@pytest.mark.parametrize(
    ("cut", "got"),
    [({"images.bin": 1}, "14 and a part"), ({"logits.bin": -1}, "15 and a part"), ({"images.bin": 384}, "14")],
)
def test_replay_refuses_a_cache_cut_short_or_too_long(copy: Path, cut: dict[str, int], got: str) -> None:
    for name, less in cut.items():
        os.truncate(copy / name, (copy / name).stat().st_size - less)
    with pytest.raises(
        ValueError, match=rf"^LogitCache: .*copy must hold 15 batches, got {got}: call write\(\) to go on$"
    ):
        list(make(copy).cache)


def test_replay_refuses_what_was_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold 15 batches, got 0: call write\(\) to go on$"):
        list(make(tmp_path / "x").cache)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_replay_finds_every_changed_bit(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, name: str, place: float, bit: int
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flip") / "copy"))
    data = bytearray((folder / name).read_bytes())
    at = int(place * len(data))
    data[at] ^= 1 << bit
    (folder / name).write_bytes(data)
    read, batch = 0, at * 15 // len(data)
    message = rf"^LogitCache: batch {batch} of .*copy must have the checksum [0-9a-f]{{8}}, got [0-9a-f]{{8}}: call "
    with pytest.raises(ValueError, match=message):
        for _ in make(folder).cache:
            read += 1
    assert read == batch


def test_replay_finds_batches_that_changed_places(copy: Path) -> None:
    for name in FILES:
        data = (copy / name).read_bytes()
        step = len(data) // 15
        (copy / name).write_bytes(data[step : 2 * step] + data[:step] + data[2 * step :])
    with pytest.raises(ValueError, match=r"^LogitCache: batch 0 of "):
        next(iter(make(copy).cache))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"images": IMAGES + 1}, r"images must be as in .*, sha256 [0-9a-f]{12}\.\.\., got sha256 [0-9a-f]{12}\.\.\."),
        ({"images": IMAGES[:9], "labels": LABELS[:9]}, r"images must be as in .*, sha256 .*, got sha256 .*"),
        ({"labels": LABELS.flip(0)}, r"labels must be as in .*, sha256 .*, got sha256 .*"),
        ({"member": Member(1)}, r"teachers must be as in .*, sha256 .*, got sha256 .*"),
        ({"teachers": Ensemble([Member(), Member()])}, r"teachers must be as in .*, sha256 .*, got sha256 .*"),
        ({"passes": 4}, r"passes must be as in .*, 3, got 4"),
        ({"batch_size": 3}, r"batch_size must be as in .*, 2, got 3"),
        ({"seed": 5}, r"seed must be as in .*, 0, got 5"),
        ({"classes": 5}, r"classes must be as in .*, 4, got 5"),
        ({"augment": Augment(hue=0.5, smallest=6)}, r"augment must be as in .*'hue': 0.06.*, got .*'hue': 0.5.*"),
    ],
)
def test_refuses_what_was_made_of_something_else(whole: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^LogitCache: {message}: remove the folder$"):
        make(whole, **kwargs)


def test_teachers_of_another_kind_with_the_same_weights_are_others(whole: Path) -> None:
    class Other(Member):
        pass

    with pytest.raises(ValueError, match=r"^LogitCache: teachers must be as in "):
        make(whole, member=Other())


OTHERS = r"^LogitCache: teachers must give the logits of batch 0 in .* within 0\.2%, got [0-9.]+%: remove the folder$"


@pytest.mark.parametrize(
    "other", [Deep(slope=0.1), Deep(dtype=torch.bfloat16), Deep(shift=0.01)], ids=["slope", "dtype", "buffer"]
)
def test_teachers_that_differ_outside_their_state_are_others(tmp_path: Path, other: Deep) -> None:
    mine, theirs = (make(tmp_path / "x", member=member).cache for member in (Deep(), other))
    mine.write()
    before = contents(tmp_path / "x")
    for touch in (theirs.write, lambda: next(iter(theirs)), lambda: make(tmp_path / "x", member=other)):
        with pytest.raises(ValueError, match=OTHERS):
            touch()
    assert contents(tmp_path / "x") == before
    own = make(tmp_path / "y", member=other).cache
    own.write()
    assert own.identity != mine.identity == make(tmp_path / "x", member=Deep()).cache.identity


def test_teachers_that_round_otherwise_are_the_same(copy: Path) -> None:
    class Rounded(Member):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + 1e-5)

    Rounded.__name__ = "Member"
    damage(copy, "logits.bin", 0)  # the first whole batch is another
    assert make(copy, member=Rounded()).cache.write() == 1
    assert len(list(make(copy).cache)) == 15


def test_autocast_around_a_call_has_no_part_in_the_logits(whole: Path, tmp_path: Path) -> None:
    cache, _ = make(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        cache.write()
        assert len(list(cache)) == 15
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("kwargs", [{"member": Member(1)}, {"seed": 5}, {"batch_size": 3}, {"passes": 2}])
def test_a_folder_belongs_to_who_wrote_first(whole: Path, tmp_path: Path, kwargs: dict[str, Any]) -> None:
    first, second = make(tmp_path).cache, make(tmp_path, **kwargs).cache
    first.write()
    for touch in (second.write, lambda: next(iter(second))):
        with pytest.raises(ValueError, match=r"^LogitCache: \w+ must be as in .*: remove the folder$"):
            touch()
    assert contents(tmp_path) == contents(whole)


def test_teachers_need_no_parameters(tmp_path: Path) -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().mean((2, 3))

    cache, _ = make(tmp_path, teachers=Ensemble([Means()]), labels=LABELS % 3, classes=3)
    cache.write()
    assert all(torch.equal(z, x.float().mean((2, 3))) for x, _, z in cache)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"images": IMAGES.float()}, r"images must have shape \(n, 3, side, side\) and be uint8, got .* float32"),
        ({"images": IMAGES[0]}, r"images must have shape .* and be uint8, got shape \(3, 8, 8\) uint8"),
        ({"images": IMAGES[:, :1]}, r"images must have shape .* and be uint8, got shape \(11, 1, 8, 8\) uint8"),
        ({"images": IMAGES[..., :7]}, r"images must have shape .* and be uint8, got shape \(11, 3, 8, 7\) uint8"),
        ({"augment": Augment(smallest=9)}, r"images must have sides of at least 9, the smallest crop, got 8"),
        ({"labels": LABELS[:4]}, r"labels must have shape \(11,\) and be int64, got shape \(4,\) int64"),
        ({"labels": LABELS.int()}, r"labels must have shape \(11,\) and be int64, got shape \(11,\) int32"),
        ({"labels": LABELS + 1}, r"labels must be 0 to 3, below classes, got 1 to 4"),
        ({"labels": LABELS - 1}, r"labels must be 0 to 3, below classes, got -1 to 2"),
        ({"batch_size": 12}, r"batch_size must be at most the 11 images, got 12"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"batch_size must be at most the 0 images, got 2"),
        ({"batch_size": 0}, r"batch_size must be an int >= 1, got 0"),
        ({"passes": 0}, r"passes must be an int >= 1, got 0"),
        ({"passes": 1.5}, r"passes must be an int >= 1, got 1\.5"),
        ({"classes": "4"}, r"classes must be an int >= 1, got '4'"),
        ({"seed": "a"}, r"seed must be an int, got 'a'"),
        ({"teachers": [Member()]}, r"teachers must be an Ensemble, got list"),
    ],
)
def test_refuses_arguments(tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^LogitCache: {message}$"):
        make(tmp_path, **kwargs)


class Infinite(Member):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"member": Member(classes=3)}, r"give shape \(2, 4\), got \(2, 3\)"),
        ({"classes": 10}, r"give shape \(2, 10\), got \(2, 4\)"),
        ({"member": Infinite()}, r"give finite logits, got -?inf"),
    ],
)
def test_a_write_that_stored_nothing_leaves_the_folder_free(
    tmp_path: Path, whole: Path, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^LogitCache: teachers must {message}$"):
        make(tmp_path, **kwargs).cache.write()
    assert contents(tmp_path) == [b"", b""]
    make(tmp_path).cache.write()
    assert contents(tmp_path) == contents(whole)
    assert (tmp_path / "header.json").read_text() == (whole / "header.json").read_text()


def test_refuses_a_full_disk_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, member = make(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9000, 3000, 6000))
    with pytest.raises(ValueError, match=r"^LogitCache: .* must have 6,540 bytes free, got 6,000$"):
        cache.write()
    assert not member.calls


@pytest.mark.parametrize("text", ["", "[]", "\x00"])
def test_refuses_a_damaged_or_missing_header(copy: Path, text: str) -> None:
    (copy / "header.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"^LogitCache: .*header\.json must be the header of a cache: remove the folder$"
    ):
        make(copy)
    (copy / "header.json").unlink()
    with pytest.raises(
        ValueError, match=r"^LogitCache: .*copy must hold header\.json beside its files: remove the folder$"
    ):
        make(copy)


def test_header_says_what_it_was_made_of(whole: Path) -> None:
    header = json.loads((whole / "header.json").read_text())
    assert {key: header[key] for key in ("passes", "batch_size", "seed", "classes")} == {
        "passes": 3,
        "batch_size": 2,
        "seed": 0,
        "classes": 4,
    }
    assert Augment(**header["augment"]) == Augment(smallest=6)
