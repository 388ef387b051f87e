"""Safe YAML for settings: bounded size, plain values only, no duplicate keys.

``1e-4`` is a number, as in YAML 1.2; a date is text. Anchors, aliases and merge keys are supported
as long as their expansion stays within the bounds.
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
MAX_VALUES = 100_000  # with aliases expanded
_MAX_NUMBER = 64  # characters
_WEIGHT = 64  # this many characters of text count as one more value
_PATH = 40  # characters of a key shown in error messages
_STRING, _INT, _FLOAT, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "merge")
)
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "map", "seq")}
_PLAIN |= {_STRING, _INT, _FLOAT, _MERGE}


class RefusedError(ConfigError, yaml.YAMLError):
    """The document is YAML, but outside the supported subset."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, fixed to read ``1e-4`` as a number (YAML 1.1 wants ``1.0e-4``)."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count nodes while parsing, so that neither the stack nor memory can run out."""
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise self._refuse(f"is nested deeper than {MAX_DEPTH} levels")
        if self.nodes > MAX_VALUES:
            raise self._refuse(f"has more than {MAX_VALUES:,} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, problem: str) -> RefusedError:
        return _refuse_line(self.line, "", problem)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Parse a YAML document into plain values: None, bool, int, float, str, list and dict.

    Time and memory are proportional to the length of the text plus the number of values in it,
    with aliases expanded.

    Raises:
        yaml.YAMLError: not valid YAML.
        RefusedError: valid YAML, but with other than plain values, beyond the bounds, or with a
            duplicate key; the message says where.
    """
    if len(text) > MAX_LENGTH:
        raise RefusedError(f"longer than the limit of {MAX_LENGTH:,} characters.")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Survey(loader).measure(node, "")
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # character codes or versions out of range
        raise RefusedError(f"not valid YAML: {error}.") from None
    finally:
        loader.dispose()


def read_yaml_file(path: str | PathLike[str]) -> Any:
    """Parse a YAML file into plain values, reading no more than the limit.

    Raises:
        SourceError: the file cannot be read or is not valid YAML.
        RefusedError: see :func:`read_yaml`.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return read_yaml(file.read(MAX_LENGTH + 1))
    except RefusedError:
        raise
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"cannot be read: {error}") from None


class _Survey:
    """Measures the expanded size of a document before any value is constructed."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.sizes: dict[int, tuple[int, int] | None] = {}  # node id -> values, depth; None: open

    def measure(self, node: yaml.Node, path: str) -> tuple[int, int]:
        """Return the number of values that a node expands to, and their nesting depth.

        An alias always follows its anchor, so the recursion is no deeper than the text's nesting.
        """
        key = id(node)
        if key in self.sizes:
            known = self.sizes[key]
            if known is None:
                raise _refuse(node, path, "contains itself")
            return known
        self.sizes[key] = None
        self._check(node, path)
        parts = [self.measure(child, where) for child, where in self._children(node, path)]
        text = len(node.value) // _WEIGHT if isinstance(node, yaml.ScalarNode) else 0
        count = 1 + text + sum(size for size, _ in parts)
        depth = 1 + max((below for _, below in parts), default=0)
        if count > MAX_VALUES:
            problem = f"has more than {MAX_VALUES:,} values with its aliases expanded"
            raise _refuse(node, path, problem)
        if depth > MAX_DEPTH:
            raise _refuse(node, path, f"is nested deeper than {MAX_DEPTH} levels")
        self.sizes[key] = count, depth
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
            problem = f"has the tag {shorten(node.tag)}; only plain values are allowed"
            raise _refuse(node, path, problem)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
        elif isinstance(node, yaml.ScalarNode) and node.tag == _STRING:
            if any("\ud800" <= character <= "\udfff" for character in node.value):
                raise _refuse(node, path, f"is {shorten(node.value)}, which is not valid Unicode")
        elif isinstance(node, yaml.ScalarNode):
            implied = self.loader.resolve(  # type: ignore[no-untyped-call]
                yaml.ScalarNode, node.value, (True, False)
            )
            if implied != node.tag:
                kind = node.tag.rpartition(":")[2]
                raise _refuse(node, path, f"is {shorten(node.value)}, which is not of type {kind}")
            _check_number(node, path)


def _check_keys(node: yaml.MappingNode, path: str) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refuse(key, path, "has a list or a mapping as a key")
        if (key.tag, key.value) in seen:
            raise _refuse(key, path, f"has the key {shorten(key.value)} twice")
        seen.add((key.tag, key.value))


def _check_number(node: yaml.ScalarNode, path: str) -> None:
    if node.tag not in (_INT, _FLOAT):
        return
    if len(node.value) > _MAX_NUMBER:
        raise _refuse(node, path, f"is a number of {len(node.value):,} characters")
    loader = yaml.SafeLoader("")
    try:
        if node.tag == _INT:
            good = abs(loader.construct_yaml_int(node)) < 2**63
        else:
            good = math.isfinite(loader.construct_yaml_float(node))
    except (ValueError, OverflowError):
        good = False
    if not good:
        problem = "not a 64-bit integer" if node.tag == _INT else "not a finite number"
        raise _refuse(node, path, f"is {shorten(node.value)}, {problem}")


def _refuse(where: yaml.Node, path: str, problem: str) -> RefusedError:
    mark = where.start_mark
    return _refuse_line(0 if mark is None else mark.line, path, problem)


def _refuse_line(line: int, path: str, problem: str) -> RefusedError:
    place = f"line {line + 1}, {path}" if path else f"line {line + 1}"
    return RefusedError(f"{place}: {problem}. Use plain values, each key once.")
