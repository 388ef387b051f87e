"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

import fewbits
from structure import Structure, cycles, files_per_folder, rooms

PACKAGE = Path(fewbits.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# part -> what of fewbits it may import, besides itself; every part is listed
MAY = {
    "errors": set(),
    "progress": set(),
    "registry": {"errors"},
    "files": {"errors"},
    "ops": {"errors"},
    "coded": {"errors"},
    "coding": {"errors", "registry"},
    "container": {"errors", "files", "coded", "coding"},
    "report": {"errors", "files", "coded"},
    "search": {"errors", "files", "coded", "report"},
    "pretrained": {"errors", "files", "coded", "container"},
    "engine": {"errors", "progress", "registry", "coded", "ops"},
    "evaluation": {"errors", "progress", "registry", "engine"},
    "sources": {"errors", "progress", "registry", "files", "engine"},
    "methods": {"errors", "registry", "coded", "coding", "ops", "engine"},
    "recipe": {"errors", "registry", "files", "coded", "engine", "methods"},
}
MAY["compression"] = {
    *("errors", "progress", "files", "coded", "coding", "container", "search", "report"),
    *("engine", "methods", "pretrained", "recipe", "sources"),
}
MAY["exporters"] = {
    *("errors", "registry", "files", "coded", "container", "pretrained", "engine", "compression"),
}
MAY["hub"] = {
    *("errors", "files", "coded", "container", "pretrained", "engine", "compression"),
}
MAY["training"] = {
    *("errors", "progress", "registry", "files", "coded", "coding", "container", "ops"),
    *("engine", "evaluation", "sources", "methods", "pretrained", "recipe", "compression"),
}
MAY["api"] = set(MAY) - {"ops", "report"} | {"training"}
MAY["cli"] = {*MAY, "__init__"} - {"ops"}
MAY["__init__"] = set(MAY) - {"cli"}
MAY["__main__"] = {"cli"}
NO_TORCH = (
    *("files", "coded", "coding", "container", "errors", "pretrained", "registry", "progress"),
    "search",
)


@cache
def structure() -> Structure:
    return Structure(PACKAGE.parent)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


def test_dependencies_point_one_way():
    wrong = []
    for module, targets in structure().graph().items():
        part = _part(module)
        for ours in {_part(target) for target in targets} - {part}:
            if ours not in MAY[part]:
                wrong.append(f"{module} imports {ours}")
    assert wrong == []
    assert {_part(module) for module in structure().files} == set(MAY)


def test_no_imports_in_a_circle():
    assert cycles(structure().graph()) == []
    assert cycles(rooms(structure())) == []


def test_folders_are_small():
    folders = files_per_folder(structure())
    assert folders["."] <= 6  # one is __main__, which has to be here
    assert {name: count for name, count in folders.items() if count > 12} == {}


def test_some_parts_need_no_torch_and_unpickle_nothing():
    wrong = []
    for path in FILES:
        for name, line in _imports(path):
            if name.split(".")[0] in ("torch", "pickle", "marshal", "shelve"):
                wrong.append((path.relative_to(PACKAGE).parts[0].removesuffix(".py"), name, line))
    assert [entry for entry in wrong if entry[0] in NO_TORCH] == []


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(path: Path):
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, node.lineno


def test_nothing_imports_the_command_line():
    for module, targets in structure().graph().items():
        allowed = _part(module) in ("cli", "__main__")
        assert allowed or not any(_part(t) == "cli" for t in targets), module


def test_files_and_functions_are_small():
    long = [p.name for p in FILES if len(p.read_text().splitlines()) > 500]
    assert long == []
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if told else node.lineno
                assert node.end_lineno - start <= 40, f"{path.name}: {node.name}"


def test_every_module_says_what_it_offers():
    for path in FILES:
        body = tree(path).body
        names = {t.id for n in body if isinstance(n, ast.Assign) for t in n.targets
                 if isinstance(t, ast.Name)}  # fmt: skip
        has_code = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in body)
        assert "__all__" in names or not has_code, path
        assert ast.get_docstring(tree(path)), path


def test_user_input_meets_no_assert():
    for path in FILES:
        assert not any(isinstance(n, ast.Assert) for n in nodes(path))


# A name that comes or goes is a change of the public surface: say so in CHANGELOG.md.
PUBLIC = [
    "CODECS",
    "EXPORTERS",
    "GPFQ",
    "GPTQ",
    "HEMP",
    "METHODS",
    "METRICS",
    "PWFN",
    "RDOQ",
    "Activations",
    "BudgetError",
    "CalibrationError",
    "ClusterError",
    "CodedModel",
    "CompressionResult",
    "ConfigError",
    "CorruptFileError",
    "FewbitsError",
    "FileInfo",
    "LayerHarm",
    "LowBit",
    "MissingExtraError",
    "ModelError",
    "Nearest",
    "NoisyEvaluation",
    "Plan",
    "ProgressEvent",
    "Qronos",
    "Ramp",
    "RankError",
    "Recipe",
    "Rule",
    "SourceError",
    "TargetError",
    "Training",
    "Transform",
    "Tuner",
    "apply_delta",
    "compress",
    "compress_adapter",
    "empty_weights",
    "encode_delta",
    "ensemble",
    "export",
    "from_pretrained",
    "inspect",
    "load",
    "load_tensor",
    "noise_resilience",
    "plan",
    "prepare",
    "sensitivity",
]


def test_public_names():
    assert fewbits.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(fewbits, name) is not None
    assert set(PUBLIC) <= set(dir(fewbits))


def test_loading_a_file_imports_no_method_and_no_recipe(tmp_path):
    file = tmp_path / "net.fewbits"
    fewbits.compress(torch.nn.Linear(4, 4), "nearest").save(file)
    code = (
        "import sys, fewbits; fewbits.load(sys.argv[1]); "
        "parts = ('methods', 'recipe', 'training', 'sources', 'search', 'cli'); "
        "assert not {f'fewbits.{part}' for part in parts} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)


def test_import_and_inspect_need_no_torch():
    code = "import sys, fewbits; fewbits.inspect; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compressing_waits_for_no_import_of_training_or_data():
    code = (
        "import sys, torch, fewbits; fewbits.compress, fewbits.plan; "
        "assert not {'fewbits.training', 'fewbits.sources', 'lightning_fabric'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _taken(path):
    """Yield (module, name) of everything of fewbits that a file imports by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "fewbits":
            yield from ((str(node.module), alias.name) for alias in node.names)


def _exists(module, name):
    found = importlib.import_module(module)
    return hasattr(found, name) or find_spec(f"{module}.{name}") is not None


def test_what_benchmarks_take_of_the_package_is_there():
    """They are not run here, and an import that moved would show after hours."""
    found = {pair for path in sorted(BENCHMARKS.glob("*.py")) for pair in _taken(path)}
    assert len(found) > 100
    assert [pair for pair in sorted(found) if not _exists(*pair)] == []
