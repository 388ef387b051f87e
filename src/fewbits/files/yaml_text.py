"""YAML as people write settings, and no more of it: bounded, plain values, every key once.

``1e-4`` is a number, as in YAML 1.2 and everywhere else; a date is text. Anchors, aliases and merge
keys work as long as what they stand for, written out, stays within the bounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, SourceError, shorten

__all__ = ["MAX_LENGTH", "RefusedError", "read_yaml", "read_yaml_file"]

MAX_LENGTH = 1 << 20  # characters of a document
MAX_DEPTH = 32
MAX_VALUES = 100_000  # aliases written out
_MAX_NUMBER = 64  # characters
_WEIGHT = 64  # characters of a text that count as one value more
_PATH = 40  # characters of a key that a place names
_STRING, _INT, _FLOAT, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "merge")
)
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "map", "seq")}
_PLAIN |= {_STRING, _INT, _FLOAT, _MERGE}


class RefusedError(ConfigError, yaml.YAMLError):
    """A document that is YAML, and is not read."""


class _Loader(yaml.SafeLoader):
    """The safe loader, of YAML 1.1, which takes an exponent only with a point and a sign."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count while the document is read, so that neither stack nor memory can run out."""
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise self._refused(f"is nested deeper than {MAX_DEPTH} levels")
        if self.nodes > MAX_VALUES:
            raise self._refused(f"holds more than {MAX_VALUES:,} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refused(self, problem: str) -> RefusedError:
        return _refused_at(self.line, "", problem)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Return the plain values of a YAML document: None, bool, int, float, str, list and dict.

    Takes time and memory in proportion to the text, and to the values it stands for.

    Raises:
        yaml.YAMLError: it is none.
        RefusedError: it is one, but not of plain values within the bounds, or with a key twice;
            says where.
    """
    if len(text) > MAX_LENGTH:
        raise RefusedError(f"it is longer than the {MAX_LENGTH:,} characters that are read.")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Survey(loader).look(node, "")
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # of characters and versions beyond all numbers
        raise RefusedError(f"it is no YAML: {error}.") from None
    finally:
        loader.dispose()


def read_yaml_file(path: str | PathLike[str]) -> Any:
    """Return the plain values of a YAML file, of which no more is read than is allowed.

    Raises:
        SourceError: the file cannot be read, or is no YAML.
        RefusedError: as :func:`read_yaml`.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return read_yaml(file.read(MAX_LENGTH + 1))
    except RefusedError:
        raise
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"cannot be read: {error}") from None


class _Survey:
    """What a document stands for, measured before any of it is made."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.sizes: dict[int, tuple[int, int] | None] = {}  # by node: values and depth; None: open

    def look(self, node: yaml.Node, path: str) -> tuple[int, int]:
        """Return how many values a node stands for, and how deep they are nested.

        An alias comes after what it names, so that this recurses no deeper than the text nests.
        """
        place = id(node)
        if place in self.sizes:
            found = self.sizes[place]
            if found is None:
                raise _refused(node, path, "contains itself")
            return found
        self.sizes[place] = None
        self._check(node, path)
        parts = [self.look(child, where) for child, where in self._children(node, path)]
        text = len(node.value) // _WEIGHT if isinstance(node, yaml.ScalarNode) else 0
        count = 1 + text + sum(size for size, _ in parts)
        depth = 1 + max((below for _, below in parts), default=0)
        if count > MAX_VALUES:
            told = f"stands for more than {MAX_VALUES:,} values, its aliases written out"
            raise _refused(node, path, told)
        if depth > MAX_DEPTH:
            raise _refused(node, path, f"is nested deeper than {MAX_DEPTH} levels")
        self.sizes[place] = count, depth
        return count, depth

    def _children(self, node: yaml.Node, path: str) -> Iterator[tuple[yaml.Node, str]]:
        if isinstance(node, yaml.SequenceNode):
            for position, child in enumerate(node.value):
                yield child, f"{path}[{position}]"
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield key, path
                yield value, f"{path}.{str(key.value)[:_PATH]}".removeprefix(".")

    def _check(self, node: yaml.Node, path: str) -> None:
        if node.tag not in _PLAIN:
            told = f"has the tag {shorten(node.tag)}, and only plain values are read"
            raise _refused(node, path, told)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
        elif isinstance(node, yaml.ScalarNode) and node.tag == _STRING:
            if any("\ud800" <= character <= "\udfff" for character in node.value):
                raise _refused(node, path, f"is {shorten(node.value)}, which is no Unicode")
        elif isinstance(node, yaml.ScalarNode):
            implied = self.loader.resolve(  # type: ignore[no-untyped-call]
                yaml.ScalarNode, node.value, (True, False)
            )
            if implied != node.tag:
                told = f"is {shorten(node.value)}, which is no {node.tag.rpartition(':')[2]}"
                raise _refused(node, path, told)
            _check_number(node, path)


def _check_keys(node: yaml.MappingNode, path: str) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key, path, "has a list or a mapping for a key")
        if (key.tag, key.value) in seen:
            raise _refused(key, path, f"has the key {shorten(key.value)} twice")
        seen.add((key.tag, key.value))


def _check_number(node: yaml.ScalarNode, path: str) -> None:
    if node.tag not in (_INT, _FLOAT):
        return
    if len(node.value) > _MAX_NUMBER:
        raise _refused(node, path, f"is a number of {len(node.value):,} characters")
    make = yaml.SafeLoader("")
    try:
        if node.tag == _INT:
            good = abs(make.construct_yaml_int(node)) < 2**63
        else:
            good = math.isfinite(make.construct_yaml_float(node))
    except (ValueError, OverflowError):
        good = False
    if not good:
        told = "an integer beyond 64 bits" if node.tag == _INT else "no finite number"
        raise _refused(node, path, f"is {shorten(node.value)}, {told}")


def _refused(where: yaml.Node, path: str, problem: str) -> RefusedError:
    mark = where.start_mark
    return _refused_at(0 if mark is None else mark.line, path, problem)


def _refused_at(line: int, path: str, problem: str) -> RefusedError:
    place = f"line {line + 1}, {path}" if path else f"line {line + 1}"
    return RefusedError(f"{place}: {problem}. Write plain values, each key once.")
