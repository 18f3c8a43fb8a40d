"""Drop-in modules on the ops: import them beside torch.nn."""

from crest_ext.nn.channel_mean import ChannelMean
from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.lowered import LoweredConv2d
from crest_ext.nn.masked import Masked, MaskedConv2d, MaskedLinear, mask_
from crest_ext.nn.packed_sequential import PackedSequential
from crest_ext.nn.pad import SamePad2d
from crest_ext.nn.residual import Residual
from crest_ext.nn.separable import SeparableConv2d
from crest_ext.nn.shortcut import Shortcut
from crest_ext.nn.sparse import SparseConv2d, SparseLinear
from crest_ext.nn.stem import StemConv2d
from crest_ext.nn.zero import ZeroConv2d

__all__ = [
    "ChannelMean",
    "DepthwiseConv2d",
    "LoweredConv2d",
    "Masked",
    "MaskedConv2d",
    "MaskedLinear",
    "PackedSequential",
    "Residual",
    "SamePad2d",
    "SeparableConv2d",
    "Shortcut",
    "SparseConv2d",
    "SparseLinear",
    "StemConv2d",
    "ZeroConv2d",
    "mask_",
]
