"""Tensors and models in one small file that is checked before it is believed: docs/format.md.

The names and their meaning are those of safetensors.
"""

from crest_ext.container.files import load, load_file, save, save_file
from crest_ext.container.models import load_model, save_model
from crest_ext.container.packed import load_packed
from crest_ext.container.reader import safe_open

__all__ = ["load", "load_file", "load_model", "load_packed", "safe_open", "save", "save_file", "save_model"]
