"""Reading a file needs numpy, numba and the standard library: no pickle, no process, no torch."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "src" / "fewbits"
ALLOWED = {
    "coded": {"errors", "coded"},
    "coding": {"errors", "registry", "coding"},
    "container": {"errors", "files", "coded", "coding", "container"},
}
OUTSIDE = {
    "__future__", "abc", "collections", "contextlib", "dataclasses", "enum", "errno", "functools",
    "io",
    "itertools", "json", "math", "numpy", "os", "pathlib", "re", "secrets", "struct", "types",
    "typing", "zlib",
}  # fmt: skip
MORE = {
    "coding/kernels.py": {"hashlib", "logging", "numba", "threading"},
    "container/files.py": {"threading"},
    "container/reader.py": {"threading"},
    "container/threads.py": {"concurrent"},
}
FILES = [path for name in ALLOWED for path in sorted((SOURCE / name).rglob("*.py"))]


def imported(path):
    """Yield (top-level package, part of fewbits or None) of every import in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            words = (node.module or "").split(".")
            here = path.relative_to(SOURCE).parts[:-1]
            if node.level == 0:
                yield words[0], None
            else:
                yield "fewbits", (*here[: len(here) - node.level + 1], *words)[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_only_what_is_allowed_is_imported(path):
    name = path.relative_to(SOURCE).as_posix()
    layer = name.partition("/")[0]
    outside = OUTSIDE | MORE.get(name, set())
    for package, part in imported(path):
        if package == "fewbits":
            assert part in ALLOWED[layer]
        else:
            assert package in outside


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_is_evaluated(path):
    names = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not names & {"eval", "exec", "compile", "__import__"}
