"""Drop-in modules on the ops: import them beside torch.nn."""

from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.masked import Masked, MaskedConv2d, MaskedLinear, mask_
from crest_ext.nn.separable import SeparableConv2d
from crest_ext.nn.sparse import SparseConv2d, SparseLinear

__all__ = [
    "DepthwiseConv2d",
    "Masked",
    "MaskedConv2d",
    "MaskedLinear",
    "SeparableConv2d",
    "SparseConv2d",
    "SparseLinear",
    "mask_",
]
