"""ONNX files: weights and inputs as QDQ pairs, or linear layers as onnxruntime's own operator."""

from .nbits import ONNXNBits
from .qdq import ONNX, OnnxExport

__all__ = ["ONNX", "ONNXNBits", "OnnxExport"]
