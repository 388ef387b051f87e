"""How the package is built, counted: folders, imports between them, cycles, sizes.

``python tests/helpers/structure.py [SOURCE]`` prints it (SOURCE: the folder that holds the package
``fewbits``; default: ``src`` of this checkout). ``--draw N --seed S`` draws N functions and prints
where each one lives. Reads source as text; nothing of the package is imported, so that any two
commits can be compared.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "fewbits"
SOURCE = Path(__file__).parents[2] / "src"


class Structure:
    """The modules of a package and what each imports of it."""

    def __init__(self, source: Path = SOURCE, package: str = PACKAGE):
        self.files = {_module(path, source): path for path in (source / package).rglob("*.py")}
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.files.items()}
        self.package = package
        self._graphs: dict[bool, dict[str, set[str]]] = {}
        names = [name for name in self.files if name != package]
        # packages that have folders inside: those two levels above any module
        self._nested = {name.rsplit(".", 2)[0] for name in names if name.count(".") > 1}

    def imports(self, module: str, everywhere: bool = True) -> set[str]:
        """Modules of the package that `module` imports.

        `everywhere`: also inside functions and under ``TYPE_CHECKING``.
        """
        found = set()
        for node in _nodes(self.trees[module], everywhere):
            found |= self._targets(module, node)
        return found - {module}

    def _targets(self, module: str, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Import):
            return {alias.name for alias in node.names if alias.name in self.files}
        if not isinstance(node, ast.ImportFrom):
            return set()
        package = module.split(".")
        if self.files[module].name != "__init__.py":
            package = package[:-1]
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        named = {f"{origin}.{alias.name}" for alias in node.names}
        inside = {name for name in named if name in self.files}
        return inside | ({origin} if origin in self.files and inside != named else set())

    def graph(self, everywhere: bool = True) -> dict[str, set[str]]:
        """Return what every module imports; computed once."""
        if everywhere not in self._graphs:
            self._graphs[everywhere] = {n: self.imports(n, everywhere) for n in self.files}
        return self._graphs[everywhere]

    def room(self, module: str) -> str:
        """The folder of a module; its own name where it lies loose at the root.

        The ``__init__`` of a folder with folders inside is a room of its own, the front door: what
        it offers of the rooms behind it is no import of theirs.
        """
        parts = module.split(".")[1:]
        if self.files[module].name != "__init__.py":
            return ".".join(parts[:-1]) or parts[-1]
        return ".".join([*parts, "__init__"] if module in self._nested else parts)


def _module(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _nodes(tree: ast.AST, everywhere: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not everywhere and _not_at_import(node):
            continue
        yield node
        yield from _nodes(node, everywhere)


def _not_at_import(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in order:
            visit(node)
    return sorted(found)


def rooms(structure: Structure, everywhere: bool = True) -> dict[str, set[str]]:
    """Imports between rooms."""
    arrows: dict[str, set[str]] = {}
    for module, targets in structure.graph(everywhere).items():
        here = structure.room(module)
        arrows.setdefault(here, set()).update(structure.room(t) for t in targets)
    return {room: targets - {room} for room, targets in arrows.items()}


def files_per_folder(structure: Structure) -> Counter[str]:
    """Folder (``.`` for the root) to the number of Python files in it."""
    root = structure.files[structure.package].parent
    return Counter(str(path.parent.relative_to(root)) for path in structure.files.values())


def single_importers(structure: Structure) -> list[str]:
    """Modules of code that exactly one other module imports (not counting package roots)."""
    importers: Counter[str] = Counter()
    for module, targets in structure.graph().items():
        if structure.files[module].name != "__init__.py":
            importers.update(targets)
    return sorted(
        name
        for name, path in structure.files.items()
        if path.name != "__init__.py" and importers[name] == 1
    )


def functions(structure: Structure) -> list[tuple[str, str, str]]:
    """Every function and method: name, module, first line of its docstring or of its module's."""
    found = []
    for module, tree in sorted(structure.trees.items()):
        about = (ast.get_docstring(tree) or "").split("\n")[0]
        owners = {
            id(part): f"{node.name}."
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for part in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
                summary = (ast.get_docstring(node) or about).split("\n")[0]
                found.append((owners.get(id(node), "") + node.name, module, summary))
    return found


def count(structure: Structure) -> dict[str, object]:
    graph, arrows = structure.graph(), rooms(structure)
    lines = [len(path.read_text().splitlines()) for path in structure.files.values()]
    folders = files_per_folder(structure)
    return {
        "files": len(structure.files),
        "lines": sum(lines),
        "median lines of a file": statistics.median(lines),
        "longest file": max(lines),
        "rooms": len(arrows),
        "arrows between rooms": sum(map(len, arrows.values())),
        "cycles of files": len(cycles(graph)),
        "cycles of files, at import": len(cycles(structure.graph(everywhere=False))),
        "cycles of rooms": len(cycles(arrows)),
        "files at the root": folders["."],
        "most files in a folder": max(folders.values()),
        "folders of more than 12 files": sorted(f for f, n in folders.items() if n > 12),
        "files with one importer": len(single_importers(structure)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument(
        "--list", action="store_true", help="list folders, cycles, single importers"
    )
    parser.add_argument("--draw", type=int, default=0, help="draw this many functions")
    parser.add_argument("--seed", type=int, default=18)
    options = parser.parse_args()
    structure = Structure(options.source)
    print(json.dumps(count(structure), indent=1))
    if options.list:
        print(json.dumps(dict(sorted(files_per_folder(structure).items())), indent=1))
        print(*cycles(structure.graph()), *cycles(rooms(structure)), sep="\n")
        print(*single_importers(structure), sep="\n")
    if options.draw:
        drawn = random.Random(options.seed).sample(functions(structure), options.draw)
        for name, module, told in drawn:
            print(f"{module}:{name}  --  {told}")


if __name__ == "__main__":
    main()
