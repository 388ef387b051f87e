"""The file: SPEC.md is normative, the writer and the reader obey it. Knows no network."""

from .files import FileInfo, inspect, measure, read, write
from .reader import decode
from .writer import encode

__all__ = ["FileInfo", "decode", "encode", "inspect", "measure", "read", "write"]
