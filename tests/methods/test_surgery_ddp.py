"""Surgery under DistributedDataParallel: every rank holds the same masks, without having talked about them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from crest_ext import Surgery, SurgeryConfig

RANKS = 2


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    # Broadcasting buffers, as DDP does by default, sends the masks of rank 0 to all: it must work, but proves little.
    hashes = [hashes_of_masks(rank, broadcast_buffers) for broadcast_buffers in (False, True)]
    Path(folder, f"{rank}.json").write_text(json.dumps(hashes))
    dist.barrier()
    os._exit(0)  # gloo's threads, which may still run, would abort the process when it takes them down


def hashes_of_masks(rank: int, broadcast_buffers: bool) -> list[str]:
    """After each step. Every rank trains on data of its own, two micro-batches a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    surgery = Surgery(model, SurgeryConfig(0.0, gamma=0.5))
    replica = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.5, momentum=0.9)
    torch.manual_seed(rank + 1)
    hashes = []
    for _ in range(10):
        optimizer.zero_grad()
        with replica.no_sync():
            cross_entropy(replica(torch.randn(8, 1, 6, 6)), torch.arange(8) % 3).backward()
        cross_entropy(replica(torch.randn(8, 1, 6, 6)), torch.arange(8) % 3).backward()
        optimizer.step()
        surgery.step()
        masks = b"".join(bytes(mask.flatten().tolist()) for mask in model.buffers())
        hashes.append(hashlib.sha256(masks).hexdigest())
    return hashes


def test_ranks_hold_the_same_masks(tmp_path: Path) -> None:
    multiprocessing.spawn(train, (str(tmp_path),), nprocs=RANKS)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS))
    assert first == second
    assert first[0] == first[1]
    assert len(set(first[0])) > 3  # the masks did change
