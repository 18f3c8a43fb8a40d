"""The ops of torch.ops.crest, with docstrings, gradients and tracing."""

from crest_ext.ops.apply_mask import apply_mask
from crest_ext.ops.masked_linear import masked_linear
from crest_ext.ops.masked_linear_grad_weight import masked_linear_grad_weight
from crest_ext.ops.masked_linear_grad_x import masked_linear_grad_x
from crest_ext.ops.pack_sparse import PackedSparse, pack_sparse, unpack_sparse
from crest_ext.ops.prune_splice import prune_splice_
from crest_ext.ops.sgd_prune_splice import sgd_prune_splice_
from crest_ext.ops.sparse_linear import sparse_linear
from crest_ext.ops.truncated_svd import truncated_svd

__all__ = [
    "PackedSparse",
    "apply_mask",
    "masked_linear",
    "masked_linear_grad_weight",
    "masked_linear_grad_x",
    "pack_sparse",
    "prune_splice_",
    "sgd_prune_splice_",
    "sparse_linear",
    "truncated_svd",
    "unpack_sparse",
]
