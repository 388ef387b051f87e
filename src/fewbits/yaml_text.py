"""YAML as people write numbers: ``1e-4`` is one, as in YAML 1.2 and everywhere else."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["read_yaml"]


class _Loader(yaml.SafeLoader):
    """The safe loader, of YAML 1.1, which takes an exponent only with a point and a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> Any:
    """Return the plain values of a YAML document; yaml.YAMLError if it is none."""
    return yaml.load(text, Loader=_Loader)
