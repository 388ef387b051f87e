"""A second reader of fewbits files, written from SPEC.md alone: plain Python, slow, no library.

It tells what a file means when the fast reader is in doubt. Only zlib, json and struct of the
standard library do anything for it.
"""

from .codecs import Layout, matrices, symbols
from .fields import Refused
from .file import SPEC, dictionary, read

__all__ = ["SPEC", "Layout", "Refused", "dictionary", "matrices", "read", "symbols"]
