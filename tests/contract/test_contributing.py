"""CONTRIBUTING.md followed to the letter: its packages are installed, its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fewbits.coding import CODECS
from fewbits.evaluation import METRICS
from fewbits.exporters import EXPORTERS
from fewbits.methods import METHODS
from fewbits.sources import DATA, MODELS
from packages import install

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Each page, what its contract tests must at least count, and what its commands print.
PAGES = {
    "method": (33, ["kmeans: a codebook for each weight", "digits.fewbits: "]),
    "codec": (30, ["long runs of one symbol"]),
    "source": (7, ["3"]),
    "exporter": (5, ["digits.fewbits: ", "note: floats are float32"]),
    "metric": (5, ["digits.fewbits: ", ", top5 "]),
}


def page(kind):
    found = re.search(rf"^## Add an? {kind}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
    return found[1]


def parts(text):
    """Return the name of the module of a page, its code, its pyproject.toml and entry points."""
    name, code = re.search(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", text, re.M | re.S).groups()
    project = re.search(r"^`pyproject\.toml`:\n\n```toml\n(.*?)^```", text, re.M | re.S)[1]
    groups = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(.+?)\n\n', project, re.S)
    points = {
        group: dict(re.findall(r'^([\w-]+) = "(.+)"$', lines, re.M)) for group, lines in groups
    }
    return name, code, project, points


def installed(text, folder):
    """Install the package of a page as its pyproject.toml says; return its commands."""
    name, code, project, points = parts(text)
    assert f'py-modules = ["{name.removesuffix(".py")}"]' in project
    install(folder, re.search(r'^name = "(.+)"$', project, re.M)[1], {name: code}, points)
    commands = re.search(r"^```shell\n(.*?)^```", text, re.M | re.S)[1].splitlines()
    assert commands[0] == "pip install -e ."
    return commands[1:]


# Runs commands one after the other, in one process: importing torch takes longer than most of them.
RUNNER = """
import contextlib, io, json, os, runpy, sys

for settings, words in json.loads(sys.argv[1]):
    os.environ.update(settings)
    sys.argv = words
    printed, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(printed):
            if words[:2] == ["python", "-c"]:
                exec(words[2], {})
            else:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    print(json.dumps([code, printed.getvalue()]))
"""


def ran(commands, folder):
    """Run commands in the folder of the package, next to a folder ``fewbits``."""
    asked = []
    for command in commands:
        words, settings = shlex.split(command), {}
        while "=" in words[0]:
            key, _, settings[key] = words.pop(0).partition("=")
        quick = ["-p", "no:cacheprovider", "-n", "0"] if words[0] == "pytest" else []
        asked.append((settings, words + quick))
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    program = [sys.executable, "-c", RUNNER, json.dumps(asked)]
    result = subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(told) == len(commands), result.stderr
    for command, (code, printed) in zip(commands, told, strict=True):
        assert not code, f"{command}\n{printed}\n{result.stderr}"
    return [printed for _, printed in told]


@pytest.mark.slow  # each imports torch in a process of its own
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_followed_to_the_letter(kind, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "fewbits").symlink_to(ROOT)
    commands = installed(page(kind), folder)
    tests, words = PAGES[kind]
    told = dict(zip(commands, ran(commands, folder), strict=True))
    (contract,) = (text for command, text in told.items() if "pytest " in command)
    assert int(re.search(r"(\d+) passed", contract)[1]) >= tests
    printed = "".join(text for command, text in told.items() if "pytest " not in command)
    for word in words:
        assert word in printed


REGISTRIES = {
    registry.group: registry for registry in (METHODS, CODECS, MODELS, DATA, EXPORTERS, METRICS)
}


@pytest.mark.parametrize("kind", PAGES)
def test_what_a_page_declares_can_be_registered(kind, monkeypatch):
    """In every run, of every page: its code runs, and its registry takes the entry."""
    name, code, _, points = parts(page(kind))
    module = ModuleType(name.removesuffix(".py"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, name, "exec"), module.__dict__)
    (group, entries), *others = points.items()
    assert not others
    for own, value in entries.items():
        place, _, attribute = value.partition(":")
        assert place == module.__name__
        entry = getattr(module, attribute)
        assert getattr(entry, "name", own) == own
        assert REGISTRIES[group].register(own)(entry) is entry
        REGISTRIES[group].unregister(own)


def test_the_pages_are_all_and_name_every_group():
    assert sorted(re.findall(r"^## Add an? (\w+)$", TEXT, re.M)) == sorted([*PAGES])
    used = set()
    for path in (ROOT / "src").rglob("*.py"):
        used |= set(re.findall(r'Registry\(\s*"[\w ]+", "(fewbits\.\w+)"', path.read_text()))
    assert {"fewbits.models", "fewbits.codecs"} < used
    assert all(f"`{group}`" in TEXT for group in used)
