from __future__ import annotations

import pytest
import torch

import crest_ext

NUMBERS = {"apply_mask": (), "prune_splice_": (0.5, 1.0), "sgd_prune_splice_": (0.1, 0.9, 0.01, 0.5, 1.0)}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("op", "argument"),
    [("apply_mask", "mask"), ("prune_splice_", "mask")]
    + [("sgd_prune_splice_", argument) for argument in ("grad", "momentum_buffer", "mask")],
)
def test_error_for_two_devices(op: str, argument: str) -> None:
    names = ["weight", "grad", "momentum_buffer"] if op == "sgd_prune_splice_" else ["weight"]
    tensors = {name: torch.zeros(3, device="cuda") for name in names} | {"mask": torch.ones(3, device="cuda").bool()}
    tensors[argument] = tensors[argument].cpu()
    with pytest.raises(ValueError, match=f"^{op}: {argument} must be on the device of weight, cuda:0, got cpu$"):
        getattr(crest_ext, op)(*tensors.values(), *NUMBERS[op])
