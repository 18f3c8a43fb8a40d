"""Train a network smaller, store it in fewer bytes, run it faster."""

import torch  # noqa: F401  (loads libtorch, which _C links to)

from crest_ext import _C  # registers torch.ops.crest
from crest_ext import container as container
from crest_ext import nn as nn
from crest_ext import optim as optim
from crest_ext.methods import Surgery, SurgeryConfig
from crest_ext.ops import (
    PackedSparse,
    apply_mask,
    masked_linear,
    masked_linear_grad_weight,
    masked_linear_grad_x,
    pack_sparse,
    prune_splice_,
    sgd_prune_splice_,
    sparse_linear,
    truncated_svd,
    unpack_sparse,
)
from crest_ext.rewrite import factorize, materialize, pack, recalibrate, shrink

__version__: str = _C.version
__all__ = [
    "PackedSparse",
    "Surgery",
    "SurgeryConfig",
    "apply_mask",
    "factorize",
    "masked_linear",
    "masked_linear_grad_weight",
    "masked_linear_grad_x",
    "materialize",
    "pack",
    "pack_sparse",
    "prune_splice_",
    "recalibrate",
    "sgd_prune_splice_",
    "shrink",
    "sparse_linear",
    "truncated_svd",
    "unpack_sparse",
]

_C.active_isa()  # A wrong CREST_ISA is an error here and now, not in the first op.
