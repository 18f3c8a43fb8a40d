"""What changes training: one paper, one file."""

from crest_ext.methods.low_rank import LowRank, LowRankConfig
from crest_ext.methods.method import Method
from crest_ext.methods.mimic import Ensemble, Mimic, MimicConfig, mimic_loss
from crest_ext.methods.quantize import Quantize, QuantizeConfig, QuantizedTensor, QuantizeSummary
from crest_ext.methods.structured import StructuredConfig, StructuredSparsity
from crest_ext.methods.summary import LayerSummary, Summary
from crest_ext.methods.surgery import Surgery, SurgeryConfig

__all__ = [
    "Ensemble",
    "LayerSummary",
    "LowRank",
    "LowRankConfig",
    "Method",
    "Mimic",
    "MimicConfig",
    "Quantize",
    "QuantizeConfig",
    "QuantizeSummary",
    "QuantizedTensor",
    "StructuredConfig",
    "StructuredSparsity",
    "Summary",
    "Surgery",
    "SurgeryConfig",
    "mimic_loss",
]
