"""Every command of the documentation runs as it stands there, page by page."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fewbits
from cli_runs import run
from fewbits.cli.jobs.demo import train
from fewbits.errors import MissingExtraError
from fewbits.progress import silent

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
SHORTER = {"--epochs": "1"}  # the pages train for long


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in these languages; "" for those that name none."""
    found, language, lines = [], None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```") and language is None:
            language, lines = line[3:].strip(), []
        elif line.startswith("```"):
            found += ["\n".join(lines)] if language in languages else []
            language = None
        else:
            lines.append(line)
    return found


def commands(page: Path) -> list[list[str]]:
    """Return the command lines of a page, as words; comments and line breaks are resolved."""
    text = "\n".join(blocks(page, "", "bash", "console", "sh")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    # Lines with [OPTIONS] are synopses, of what may be said.
    known = [x for x in lines if x.split(" ")[0] in RUNNERS and "[OPTIONS]" not in x]
    return [shlex.split(line, comments=True) for line in known]


def run_fewbits(arguments: list[str]) -> None:
    words = list(arguments)
    for option, value in SHORTER.items():
        if option in words:
            words[words.index(option) + 1] = value
    out = words[words.index("-o") + 1] if "-o" in words else ""
    if out and Path(out).exists() and words[0] != "sweep":
        words.append("--force")
    result = run(*words)
    assert "Traceback" not in result.output


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(arguments) <= set(targets)


def check_pip(arguments: list[str]) -> None:
    """Extras that are named exist; nothing is installed here (CI installs)."""
    text = (ROOT / "pyproject.toml").read_text()
    text = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = ", text, re.MULTILINE)
    for word in arguments:
        for name in re.findall(r"\[([\w,-]+)\]", word):
            assert set(name.split(",")) <= set(extras), word


def check_python(arguments: list[str]) -> None:
    """Scripts that are named exist and know the options (running them takes minutes)."""
    if arguments[0] == "-m":
        return
    found = [base / arguments[0] for base in (ROOT, ROOT / "examples")]
    script = next((path for path in found if path.exists()), None)
    assert script is not None, arguments[0]
    for option in (word for word in arguments[1:] if word.startswith("--")):
        assert option in script.read_text(), (script, option)


RUNNERS = {
    "fewbits": run_fewbits,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the pages take for granted: a network, its weights, its data."""
    folder = tmp_path_factory.mktemp("docs")
    mynet = (ROOT / "examples" / "mynet.py").read_text()
    (folder / "mynet.py").write_text(mynet)
    for name in ("recipe.yaml",):
        (folder / name).write_text((ROOT / "examples" / name).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        runpy.run_path("mynet.py", run_name="__main__")
        Path("net.safetensors").write_bytes(Path("mynet.safetensors").read_bytes())
        network = runpy.run_path("mynet.py")["build"]()
        coded = fewbits.compress(network, "nearest")
        coded.save("net.fewbits")
        coded.save("small.fewbits")
    return folder


@pytest.fixture(scope="module")
def shown(prepared):
    """What ``fewbits demo`` leaves there, as far as pages read it."""
    (prepared / "fewbits-demo").mkdir()
    train(prepared / "fewbits-demo", 0, silent)


def page_of(page: Path):
    """The README in every run, the other pages with the slow tests."""
    marks = () if page.name == "README.md" else pytest.mark.slow
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", [page_of(p) for p in PAGES if commands(p)])
def test_commands_run(page, prepared, request, monkeypatch):
    if "fewbits-demo" in page.read_text(encoding="utf-8"):
        request.getfixturevalue("shown")
    monkeypatch.chdir(prepared)
    monkeypatch.syspath_prepend(str(prepared))
    sys.modules.pop("mynet", None)
    for name, *arguments in commands(page):
        RUNNERS[name](arguments)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_names_exist(page):
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")
        for dotted in re.findall(r"\bfewbits((?:\.\w+)+)", code):
            found = fewbits
            for name in dotted.split(".")[1:]:
                if isinstance(found, type) and name not in dir(found):
                    break  # set by an instance
                try:
                    if isinstance(found, ModuleType) and not hasattr(found, name):
                        importlib.import_module(f"{found.__name__}.{name}")
                    found = getattr(found, name)
                except MissingExtraError as error:
                    pytest.skip(f"fewbits{dotted}: {error}")
