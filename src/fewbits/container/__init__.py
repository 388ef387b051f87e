"""The file format: SPEC.md is normative; writer and reader follow it. Knows nothing of networks."""

from ..files.atomic_write import write
from .files import (
    FileInfo,
    inspect,
    keep_open,
    measure,
    measure_file,
    read,
    read_lazily,
    read_tensor,
)
from .frame import DELTA_MAGIC, wrapper
from .reader import LazyTensors, decode, open_delta
from .threads import OrderedCalls, usable_threads
from .writer import FileWriter, encode, write_contents

__all__ = [
    "DELTA_MAGIC",
    "FileInfo",
    "FileWriter",
    "LazyTensors",
    "OrderedCalls",
    "decode",
    "encode",
    "inspect",
    "keep_open",
    "measure",
    "measure_file",
    "open_delta",
    "read",
    "read_lazily",
    "read_tensor",
    "usable_threads",
    "wrapper",
    "write",
    "write_contents",
]
