"""Which tensors share a stream: small ones cost more in tables and index than in values, and share these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from crest_ext.container import codecs, mixed
from crest_ext.container.index import RAW, SCALED
from crest_ext.container.parallel import in_order

SMALL = 1 << 18  # bytes, up to which a tensor may share a stream
POOL = (
    1 << 20
)  # bytes of a shared stream: what has to be decoded for one of its tensors; a mixed one may have MOST elements
TINY = 1 << 14  # bytes, up to which a pool is tried with every other one
BLOCK = 1 << 21  # bytes of a tensor's streams, for threads, partial reads and bounded memory
ROW = 8  # bytes of a stream in the index


@dataclass(frozen=True)
class Pool:
    names: tuple[str, ...]
    cost: int = 0  # 0: not known
    codec: int = RAW


def blocks(tensor: Tensor) -> list[Tensor]:
    """A tensor's rows in parts of at most about BLOCK bytes; without rows of that size, its elements."""
    nbytes = tensor.numel() * tensor.dtype.itemsize
    if nbytes <= BLOCK:
        return [tensor]
    if tensor.dim() == 0 or nbytes // tensor.shape[0] > BLOCK:
        tensor = tensor.detach().reshape(-1)
    count = -(-nbytes // BLOCK)
    return list(tensor.split(-(-tensor.shape[0] // count)))


def plan(tensors: Mapping[str, Tensor], threads: int) -> list[tuple[str, ...]]:
    """Names by stream, in the order of their bytes. The same for the same tensors, whatever the threads."""
    names = sorted(tensors, key=str.encode)
    mixable = [n for n, few in zip(names, in_order(lambda n: _mixable(tensors[n]), names, threads), strict=True) if few]
    bins = list(_bins(mixable, tensors))
    chosen = [
        names for names, pays in zip(bins, in_order(lambda b: _mix(b, tensors), bins, threads), strict=True) if pays
    ]
    taken = {name for names in chosen for name in names}
    rest = _plain([name for name in names if name not in taken], tensors, threads)
    pools = chosen + [pool.names for pool in rest]
    return sorted(pools, key=lambda pool: pool[0].encode())


def _mixable(tensor: Tensor) -> bool:
    return mixed.integers(tensor) is not None


def _bins(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
    """Names of one dtype and of as many elements as a mixed stream may have."""
    for dtype in dict.fromkeys(tensors[n].dtype for n in names):
        found: list[str] = []
        count = 0
        for name in (n for n in names if tensors[n].dtype == dtype):
            if found and count + tensors[name].numel() > mixed.MOST:
                yield tuple(found)
                found, count = [], 0
            found.append(name)
            count += tensors[name].numel()
        yield tuple(found)


def _mix(names: Sequence[str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a mixed stream of these is smaller than all others."""
    some = [tensors[n] for n in names]
    payload = mixed.encode(some)
    assert payload is not None
    others = _plain(names, tensors, 1)
    cost = sum(pool.cost or _try(pool.names, tensors).cost for pool in others)
    return codecs.pays(some, len(payload) + ROW, cost)


def _plain(names: Sequence[str], tensors: Mapping[str, Tensor], threads: int) -> list[Pool]:
    """The same without mixed streams; what a large tensor costs is not known yet."""
    alike: dict[tuple[object, ...], list[str]] = {}
    pools: list[Pool] = []
    for name in names:
        t = tensors[name]
        if t.numel() * t.dtype.itemsize > SMALL:
            pools.append(Pool((name,)))
        elif not t.numel():
            alike.setdefault((str(t.dtype), "empty"), []).append(name)
        else:
            alike.setdefault((str(t.dtype), t.dim(), name.rpartition(".")[2]), []).append(name)
    groups = in_order(lambda group: _pool(group, tensors), alike.values(), threads)
    by_dtype: dict[str, list[Pool]] = {}
    for key, found in zip(alike, groups, strict=True):
        by_dtype.setdefault(str(key[0]), []).extend(found)
    for found in in_order(lambda group: _merge(group, tensors), by_dtype.values(), threads):
        pools += found
    return pools


def _try(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Pool:
    """These in one stream."""
    names = tuple(sorted(names, key=str.encode))
    codec, size = codecs.estimate(*(tensors[n] for n in names))
    return Pool(names, ROW + size, codec)


def _bytes(names: Iterable[str], tensors: Mapping[str, Tensor]) -> int:
    return sum(tensors[n].numel() * tensors[n].dtype.itemsize for n in names)


def _pool(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Pool]:
    """All in one stream, or the two halves by themselves, whichever is smaller."""
    fits = _bytes(names, tensors) <= POOL
    if len(names) == 1 or not _bytes(names, tensors):
        return [_try(names, tensors)]
    half = len(names) // 2
    apart = _pool(names[:half], tensors) + _pool(names[half:], tensors)
    if fits and (together := _try(names, tensors)).cost <= sum(pool.cost for pool in apart):
        return [together]
    return apart


def _merge(pools: Sequence[Pool], tensors: Mapping[str, Tensor]) -> list[Pool]:
    """Tiny pools of different kinds join where that is smaller: the one that gains most, or none."""
    # Those with a scale are left alone: others have another.
    done = [pool for pool in pools if _bytes(pool.names, tensors) > TINY or pool.codec == SCALED]
    tiny: list[Pool] = []
    for pool in (pool for pool in pools if pool not in done):
        tries = [(_try(other.names + pool.names, tensors), i) for i, other in enumerate(tiny)]
        gains = [(tiny[i].cost + pool.cost - both.cost, -i, both) for both, i in tries]
        gain, place, best = max(gains, key=lambda g: g[:2], default=(-1, 0, pool))
        if gain < 0:
            tiny.append(pool)
        else:
            tiny[-place] = best
    return done + tiny
