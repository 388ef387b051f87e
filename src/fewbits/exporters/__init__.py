"""Exports: compressed networks for other runtimes, one file for each, found in ``EXPORTERS``."""

from .base import EXPORTERS, Checked, Exported, Exporter
from .by_name import export, exporter_for, exporter_name
from .formats import GGUF, CompressedTensors, Safetensors, TorchAO
from .onnx import ONNX, OnnxExport, ONNXNBits

__all__ = [
    "EXPORTERS",
    "GGUF",
    "ONNX",
    "Checked",
    "CompressedTensors",
    "Exported",
    "Exporter",
    "ONNXNBits",
    "OnnxExport",
    "Safetensors",
    "TorchAO",
    "export",
    "exporter_for",
    "exporter_name",
]
