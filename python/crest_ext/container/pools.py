"""Which tensors share a stream: small ones cost more in tables and index than in values, and share these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from crest_ext.container import codecs
from crest_ext.container.index import MIXED, RAW, SCALED
from crest_ext.container.mixed import MOST
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
    cost: int = 0
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
    alike: dict[tuple[object, ...], list[str]] = {}
    pools: list[tuple[str, ...]] = []
    for name in names:
        t = tensors[name]
        if t.numel() * t.dtype.itemsize > SMALL and not (t.numel() <= MOST and codecs.estimate(t)[0] == MIXED):
            pools.append((name,))
        elif not t.numel():
            alike.setdefault((str(t.dtype), "empty"), []).append(name)
        else:
            alike.setdefault((str(t.dtype), t.dim(), name.rpartition(".")[2]), []).append(name)
    groups = in_order(lambda group: _pool(group, tensors), alike.values(), threads)
    by_dtype: dict[str, list[Pool]] = {}
    for key, found in zip(alike, groups, strict=True):
        by_dtype.setdefault(str(key[0]), []).extend(found)
    for found in in_order(lambda group: _merge(group, tensors), by_dtype.values(), threads):
        pools += [pool.names for pool in found]
    return sorted(pools, key=lambda pool: pool[0].encode())


def _try(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Pool:
    """These in one stream."""
    names = tuple(sorted(names, key=str.encode))
    codec, size = codecs.estimate(*(tensors[n] for n in names))
    return Pool(names, ROW + size, codec)


def _bytes(names: Iterable[str], tensors: Mapping[str, Tensor]) -> int:
    return sum(tensors[n].numel() * tensors[n].dtype.itemsize for n in names)


def _pool(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Pool]:
    """All in one stream, or the two halves by themselves, whichever is smaller."""
    if len(names) == 1 or not _bytes(names, tensors):
        return [_try(names, tensors)]
    half = len(names) // 2
    apart = _pool(names[:half], tensors) + _pool(names[half:], tensors)
    together = _together(names, tensors)
    return [together] if together and together.cost <= sum(pool.cost for pool in apart) else apart


def _together(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Pool | None:
    """These in one stream, unless it is too long."""
    short = _bytes(names, tensors) <= POOL
    if not short and sum(tensors[n].numel() for n in names) > MOST:
        return None
    pool = _try(names, tensors)
    return pool if short or pool.codec == MIXED else None


def _merge(pools: Sequence[Pool], tensors: Mapping[str, Tensor]) -> list[Pool]:
    """Tiny and mixed pools of different kinds join where that is smaller: the one that gains most, or none."""
    done: list[Pool] = []
    open_: list[Pool] = []
    for pool in pools:
        # Those with a scale are left alone: others have another.
        if pool.codec != MIXED and (_bytes(pool.names, tensors) > TINY or pool.codec == SCALED):
            done.append(pool)
            continue
        tries = [(_together(other.names + pool.names, tensors), i) for i, other in enumerate(open_)]
        gains = [(open_[i].cost + pool.cost - both.cost, -i, both) for both, i in tries if both]
        gain, place, best = max(gains, key=lambda g: g[:2], default=(-1, 0, pool))
        if gain < 0:
            open_.append(pool)
        else:
            open_[-place] = best
    return done + open_
