"""The file: SPEC.md is normative, the writer and the reader obey it. Knows no network."""

from ..disk import write
from .files import FileInfo, inspect, measure, read, read_lazily, read_tensor
from .lazy import LazyTensors
from .reader import decode
from .writer import encode

__all__ = [
    "FileInfo",
    "LazyTensors",
    "decode",
    "encode",
    "inspect",
    "measure",
    "read",
    "read_lazily",
    "read_tensor",
    "write",
]
