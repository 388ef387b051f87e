"""The schemes: a name before the colon to the function that loads what follows it.

A new scheme is one file: decorate a function with ``MODELS.register(name)`` or
``DATA.register(name)``, or declare it as an entry point of a package, in the group
``fewbits.models`` or ``fewbits.data``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from ...registry import Registry
from .dataset import DataSource
from .spec import Spec

__all__ = ["DATA", "MODELS", "DataLoaderFunction", "ModelLoaderFunction"]

# The second argument asks for trained weights where the scheme has them; False means that they
# will be loaded from a file afterwards, so only the architecture is needed.
ModelLoaderFunction: TypeAlias = Callable[[Spec, bool], nn.Module]
DataLoaderFunction: TypeAlias = Callable[[Spec], DataSource]

MODELS: Registry[ModelLoaderFunction] = Registry("model scheme", "fewbits.models")
DATA: Registry[DataLoaderFunction] = Registry("data scheme", "fewbits.data")
