"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fewbits

PACKAGE = Path(fewbits.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# part -> what it may import of fewbits
MAY = {
    "errors": set(),
    "registry": {"errors"},
    "progress": set(),
    "disk": {"errors"},
    "ops": {"errors"},
    "coded": {"errors"},
    "coding": {"errors"},
    "container": {"errors", "registry", "disk", "coded", "coding"},
    "engine": {"errors", "registry", "progress", "coded", "ops"},
    "schedule": {"errors"},
    "methods": {"errors", "registry", "schedule", "coded", "coding", "ops", "engine"},
    "training": {
        "errors",
        "registry",
        "progress",
        "disk",
        "schedule",
        "coded",
        "coding",
        "container",
        "ops",
        "engine",
        "methods",
        "recipe",
        "planning",
        "model",
        "stages",
        "fingerprint",
        "sources",
        "evaluate",
    },
    "export": {"errors", "disk", "coded", "container", "engine", "model"},
    "fingerprint": set(),
    "yaml_text": {"errors"},
    "stages": {"errors", "methods", "schedule"},
    "recipe": {"errors", "methods", "registry", "stages", "yaml_text"},
    "planning": {"errors", "coded", "engine", "methods", "recipe"},
    "json_values": {"errors"},
    "search": {"errors", "coded", "json_values"},
    "model": {"errors", "disk", "coded", "container", "engine", "planning", "search"},
    "sources": {"errors", "registry", "progress", "engine", "json_values"},
    "report": {"errors", "coded"},
    "evaluate": {"errors", "progress", "engine"},
    "resilience": {"errors", "progress", "engine", "evaluate"},
}
NO_TORCH = (
    "disk",
    "schedule",
    "coded",
    "coding",
    "container",
    "errors",
    "registry",
    "progress",
    "search",
)


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: Path):
    """Yield (absolute module, line) of every import, relative ones resolved."""
    package = ("fewbits", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])]), node.lineno
            for alias in node.names if node.module is None else ():
                yield ".".join([*base, alias.name]), node.lineno


def test_dependencies_point_one_way():
    wrong = []
    for path in FILES:
        part = _part(path)
        for module, line in _imports(path):
            parts = module.split(".")
            ours = parts[1] if parts[0] == "fewbits" and len(parts) > 1 else part
            if part in MAY and ours != part and ours not in MAY[part]:
                wrong.append(f"{path.name}:{line} imports {module}")
            if part in NO_TORCH and parts[0] == "torch":
                wrong.append(f"{path.name}:{line} imports torch")
            if parts[0] in ("pickle", "marshal", "shelve") and part in NO_TORCH:
                wrong.append(f"{path.name}:{line} imports {module}")
    assert wrong == []


def test_nothing_imports_the_command_line():
    for path in FILES:
        if _part(path) not in ("cli", "__main__"):
            assert not any(m.startswith("fewbits.cli") for m, _ in _imports(path)), path


def test_files_and_functions_are_small():
    long = [p.name for p in FILES if len(p.read_text().splitlines()) > 500]
    assert long == []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if told else node.lineno
                assert node.end_lineno - start <= 40, f"{path.name}: {node.name}"


def test_every_module_says_what_it_offers():
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets
                 if isinstance(t, ast.Name)}  # fmt: skip
        has_code = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body)
        assert "__all__" in names or not has_code, path
        assert ast.get_docstring(tree), path


def test_user_input_meets_no_assert():
    for path in FILES:
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text())))


def test_public_names():
    assert sorted(fewbits.__all__) == sorted(set(fewbits.__all__))
    for name in fewbits.__all__:
        assert getattr(fewbits, name) is not None
    assert set(fewbits.__all__) <= set(dir(fewbits))


def test_import_and_inspect_need_no_torch():
    code = "import sys, fewbits; fewbits.inspect; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compressing_waits_for_no_import_of_training_or_data():
    code = (
        "import sys, torch, fewbits; fewbits.compress, fewbits.plan; "
        "assert not {'fewbits.training', 'fewbits.sources', 'lightning_fabric'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
