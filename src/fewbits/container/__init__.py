"""The file format: SPEC.md is normative; writer and reader follow it. Knows nothing of networks."""

from ..files.atomic_write import write
from .files import FileInfo, inspect, measure, measure_file, read, read_lazily, read_tensor
from .reader import LazyTensors, decode
from .writer import FileWriter, encode, write_contents

__all__ = [
    "FileInfo",
    "FileWriter",
    "LazyTensors",
    "decode",
    "encode",
    "inspect",
    "measure",
    "measure_file",
    "read",
    "read_lazily",
    "read_tensor",
    "write",
    "write_contents",
]
