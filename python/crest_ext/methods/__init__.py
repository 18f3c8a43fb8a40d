"""What changes training: one paper, one file."""

from crest_ext.methods.method import Method
from crest_ext.methods.quantize import Quantize, QuantizeConfig, QuantizedTensor, QuantizeSummary
from crest_ext.methods.summary import LayerSummary, Summary
from crest_ext.methods.surgery import Surgery, SurgeryConfig

__all__ = [
    "LayerSummary",
    "Method",
    "Quantize",
    "QuantizeConfig",
    "QuantizeSummary",
    "QuantizedTensor",
    "Summary",
    "Surgery",
    "SurgeryConfig",
]
