"""Train a network smaller, store it in fewer bytes, run it faster."""

import torch  # noqa: F401  (loads libtorch, which _C links to)

from crest_ext import _C  # registers torch.ops.crest
from crest_ext import container as container
from crest_ext import nn as nn
from crest_ext import optim as optim
from crest_ext.methods import (
    LowRank,
    LowRankConfig,
    Mimic,
    MimicConfig,
    Quantize,
    QuantizeConfig,
    StructuredConfig,
    StructuredSparsity,
    Surgery,
    SurgeryConfig,
)
from crest_ext.ops import (
    PackedSeparableConv2d,
    PackedSparse,
    PackedSparseConv2d,
    apply_mask,
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
    group_norms,
    group_soft_threshold_,
    masked_linear,
    masked_linear_grad_weight,
    masked_linear_grad_x,
    pack_separable_conv2d,
    pack_sparse,
    pack_sparse_conv2d,
    prune_splice_,
    separable_conv2d,
    sgd_prune_splice_,
    singular_value_threshold,
    sparse_conv2d,
    sparse_group_soft_threshold_,
    sparse_linear,
    truncated_svd,
    unpack_separable_conv2d,
    unpack_sparse,
    unpack_sparse_conv2d,
)
from crest_ext.rewrite import decompose, factorize, materialize, pack, recalibrate, separate, shrink

__version__: str = _C.version
__all__ = [
    "LowRank",
    "LowRankConfig",
    "Mimic",
    "MimicConfig",
    "PackedSeparableConv2d",
    "PackedSparse",
    "PackedSparseConv2d",
    "Quantize",
    "QuantizeConfig",
    "StructuredConfig",
    "StructuredSparsity",
    "Surgery",
    "SurgeryConfig",
    "apply_mask",
    "decompose",
    "depthwise_conv2d",
    "depthwise_conv2d_grad_weight",
    "depthwise_conv2d_grad_x",
    "factorize",
    "group_norms",
    "group_soft_threshold_",
    "masked_linear",
    "masked_linear_grad_weight",
    "masked_linear_grad_x",
    "materialize",
    "pack",
    "pack_separable_conv2d",
    "pack_sparse",
    "pack_sparse_conv2d",
    "prune_splice_",
    "recalibrate",
    "separable_conv2d",
    "separate",
    "sgd_prune_splice_",
    "shrink",
    "singular_value_threshold",
    "sparse_conv2d",
    "sparse_group_soft_threshold_",
    "sparse_linear",
    "truncated_svd",
    "unpack_separable_conv2d",
    "unpack_sparse",
    "unpack_sparse_conv2d",
]

_C.active_isa()  # A wrong CREST_ISA is an error here and now, not in the first op.
