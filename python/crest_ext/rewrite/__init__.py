"""What changes the structure of a model: one change, one file; each returns a new model."""

from crest_ext.rewrite.choose import PackedLayer
from crest_ext.rewrite.decompose import DecomposedLayer, DecomposeReport, decompose
from crest_ext.rewrite.factorize import FactorizedLayer, FactorizeReport, factorize
from crest_ext.rewrite.materialize import materialize
from crest_ext.rewrite.pack import PackReport, pack
from crest_ext.rewrite.recalibrate import recalibrate
from crest_ext.rewrite.separate import SeparatedLayer, SeparateReport, separate
from crest_ext.rewrite.shrink import ShrinkReport, ShrunkLayer, shrink

__all__ = [
    "DecomposeReport",
    "DecomposedLayer",
    "FactorizeReport",
    "FactorizedLayer",
    "PackReport",
    "PackedLayer",
    "SeparateReport",
    "SeparatedLayer",
    "ShrinkReport",
    "ShrunkLayer",
    "decompose",
    "factorize",
    "materialize",
    "pack",
    "recalibrate",
    "separate",
    "shrink",
]
