"""Exports: compressed networks for other runtimes, one file for each, found in ``EXPORTERS``."""

from .base import EXPORTERS, Checked, Exported, Exporter
from .by_name import export, exporter_for, exporter_name
from .onnx import ONNX, OnnxExport, ONNXNBits

__all__ = [
    "EXPORTERS",
    "ONNX",
    "Checked",
    "Exported",
    "Exporter",
    "ONNXNBits",
    "OnnxExport",
    "export",
    "exporter_for",
    "exporter_name",
]
