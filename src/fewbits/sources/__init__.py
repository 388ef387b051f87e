"""Models and data by name: ``builtin:digits-cnn``, ``mynet:build``, ``digits``, ``folder:pets``."""

from __future__ import annotations

from . import arrays, builtin, digits, folder, huggingface, idx, module, vision
from .data import ArraySplit, DataSource, IndexedSplit, Normalization, Split, StreamSplit
from .load import LoadedModel, code_of, load_data, load_model
from .registries import DATA, MODELS
from .selection import held_out, selection_of, with_selection

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

del arrays, builtin, digits, folder, huggingface, idx, module, vision
