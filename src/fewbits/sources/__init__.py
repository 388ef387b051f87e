"""Models and data by name: ``builtin:digits-cnn``, ``mynet:build``, ``digits``, ``folder:pets``."""

from __future__ import annotations

from . import builtin, huggingface, module, vision
from .base.dataset import ArraySplit, DataSource, IndexedSplit, Normalization, Split, StreamSplit
from .base.registries import DATA, MODELS
from .data import arrays, digits, folder, idx, text
from .data.selection import held_out, selection_of, with_selection
from .load import LoadedModel, code_of, load_data, load_model

__all__ = [
    "DATA",
    "MODELS",
    "ArraySplit",
    "DataSource",
    "IndexedSplit",
    "LoadedModel",
    "Normalization",
    "Split",
    "StreamSplit",
    "code_of",
    "held_out",
    "load_data",
    "load_model",
    "selection_of",
    "with_selection",
]

del arrays, builtin, digits, folder, huggingface, idx, module, text, vision
