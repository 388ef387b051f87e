"""Formats that other runtimes read: integers and steps as they are, without a graph."""

from .compressed_tensors import CompressedTensors
from .gguf import GGUF
from .safetensors import Safetensors
from .torchao import TorchAO

__all__ = ["GGUF", "CompressedTensors", "Safetensors", "TorchAO"]
