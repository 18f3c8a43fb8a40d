"""The ops of torch.ops.crest, with docstrings, gradients and tracing."""

from crest_ext.ops.apply_mask import apply_mask
from crest_ext.ops.depthwise_conv2d import depthwise_conv2d
from crest_ext.ops.depthwise_conv2d_grad_weight import depthwise_conv2d_grad_weight
from crest_ext.ops.depthwise_conv2d_grad_x import depthwise_conv2d_grad_x
from crest_ext.ops.depthwise_conv2d_grads import depthwise_conv2d_grads
from crest_ext.ops.group_norms import group_norms
from crest_ext.ops.group_soft_threshold import group_soft_threshold_, sparse_group_soft_threshold_
from crest_ext.ops.local_response_norm import local_response_norm
from crest_ext.ops.masked_linear import masked_linear
from crest_ext.ops.masked_linear_grad_weight import masked_linear_grad_weight
from crest_ext.ops.masked_linear_grad_x import masked_linear_grad_x
from crest_ext.ops.max_pool2d import max_pool2d
from crest_ext.ops.pack_separable_conv2d import (
    PackedSeparableConv2d,
    pack_separable_conv2d,
    unpack_separable_conv2d,
)
from crest_ext.ops.pack_sparse import PackedSparse, pack_sparse, unpack_sparse
from crest_ext.ops.pack_sparse_conv2d import PackedSparseConv2d, pack_sparse_conv2d, unpack_sparse_conv2d
from crest_ext.ops.packed_sequential import packed_sequential
from crest_ext.ops.prune_splice import prune_splice_
from crest_ext.ops.separable_conv2d import separable_conv2d
from crest_ext.ops.sgd_prune_splice import sgd_prune_splice_
from crest_ext.ops.singular_value_threshold import singular_value_threshold
from crest_ext.ops.sparse_conv2d import sparse_conv2d
from crest_ext.ops.sparse_linear import sparse_linear
from crest_ext.ops.stem_conv2d import stem_conv2d
from crest_ext.ops.truncated_svd import truncated_svd

__all__ = [
    "PackedSeparableConv2d",
    "PackedSparse",
    "PackedSparseConv2d",
    "apply_mask",
    "depthwise_conv2d",
    "depthwise_conv2d_grad_weight",
    "depthwise_conv2d_grad_x",
    "depthwise_conv2d_grads",
    "group_norms",
    "group_soft_threshold_",
    "local_response_norm",
    "masked_linear",
    "masked_linear_grad_weight",
    "masked_linear_grad_x",
    "max_pool2d",
    "pack_separable_conv2d",
    "pack_sparse",
    "pack_sparse_conv2d",
    "packed_sequential",
    "prune_splice_",
    "separable_conv2d",
    "sgd_prune_splice_",
    "singular_value_threshold",
    "sparse_conv2d",
    "sparse_group_soft_threshold_",
    "sparse_linear",
    "stem_conv2d",
    "truncated_svd",
    "unpack_separable_conv2d",
    "unpack_sparse",
    "unpack_sparse_conv2d",
]
