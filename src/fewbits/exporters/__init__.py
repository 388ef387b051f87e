"""Exports: compressed networks for other runtimes, one file for each target."""

from .onnx import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
