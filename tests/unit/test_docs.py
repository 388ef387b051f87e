"""The documentation is true: generated pages are current, links lead somewhere, examples run."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

import fewbits
import fewbits.recipe.training_config
from cpu_time import within
from fewbits.sources import DATA, MODELS
from fewbits.sources.builtin import BUILTIN
from pages import Parsed

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
PAPERS = ROOT / "docs" / "reference" / "papers.md"
RECORDS = re.compile(r"\[(\w+)\]\(\.\./\.\./benchmarks/results/(\w+)\.json\)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])


def test_generated_pages_are_current():
    script = ROOT / "docs" / "build.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_recipe_of_the_docs_is_one():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(fewbits.Recipe.from_dict(yaml.safe_load(block[1])).rules) == 3


def test_the_training_page_runs(digits_net, digits):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    recipe = fewbits.Recipe.from_dict(
        yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    )
    assert recipe.train.epochs == 30
    assert set(fewbits.recipe.training_config.loop_settings()) <= set(re.findall(r"`(\w+)`", text))
    x, y, _, _ = digits
    names = {
        "model": digits_net,
        "loader": [(x[:64], y[:64])],
        "held_out": x[64:128],
        "score": lambda network, inputs: float((network(inputs).argmax(1) == y[64:128]).sum()),
    }
    loop = text.partition("## Your own loop")[2]
    code = re.search(r"```python\n(.*?)```", loop, re.DOTALL)[1].replace('"run"', "None")
    exec(code, names)
    assert names["coded"].size_report().file_bytes > 0


def _rows_of_papers():
    """Rows of the page of papers: their first cell, what was measured, and the records named."""
    for row in re.findall(r"^\| (.*) \|$", PAPERS.read_text(encoding="utf-8"), re.MULTILINE):
        claim, _, ours, control, _ = re.split(r" ?\| ?", row)
        yield claim, f"{ours} {control}", RECORDS.findall(row)


def test_records_on_the_page_of_papers_exist():
    named = [pair for _, _, records in _rows_of_papers() for pair in records]
    assert len({link for _, link in named}) > 10
    for text, link in named:
        assert text == link
        assert (ROOT / "benchmarks" / "results" / f"{link}.json").is_file(), link
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        assert "../reference/papers.md#" in page.read_text(encoding="utf-8"), page.name


def test_figures_on_the_page_of_papers_are_those_of_the_records():
    """Of what was measured here: figures with two decimals or more, and numbers of bytes."""
    rows = list(_rows_of_papers())
    names = sorted({name for _, _, records in rows for _, name in records})
    command = [sys.executable, str(ROOT / "benchmarks" / "summary.py"), *names]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^## (\w+)$", text.replace(",", ""), flags=re.MULTILINE)[1:]
    printed = dict(zip(parts[::2], parts[1::2], strict=True))
    for claim, measured, records in rows:
        known = {f for _, name in records for f in re.findall(r"\d+(?:\.\d+)?", printed[name])}
        told = re.findall(r"\d+\.\d\d+|\d{1,3}(?:,\d{3})+", measured)
        assert not records or {each.replace(",", "") for each in told} <= known, claim


def test_every_method_has_a_page():
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "methods").glob("*.md"))
    for name in fewbits.METHODS:
        assert name in pages.lower(), name


def test_the_page_of_sources_names_every_scheme_and_network():
    text = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    schemes = {*MODELS, *DATA} - {"module"}
    missing = [name for name in (*schemes, *BUILTIN) if not re.search(rf"`{name}[:`]", text)]
    assert missing == []


@pytest.mark.parametrize("method", ["hemp", "pwfn", "lowbit"])
def test_loops_of_the_docs_train_in_training_mode(method):
    text = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert code.index("model.train()") < code.index("for done,")


def test_the_recipe_of_the_docs_fits_the_network_of_the_examples():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    network = runpy.run_path(str(ROOT / "examples" / "mynet.py"))["build"]()
    recipe = replace(fewbits.Recipe.from_dict(yaml.safe_load(block)), train=None)
    coded = fewbits.compress(network, recipe, [torch.rand(8, 1, 8, 8)])
    assert [entry.method is None for entry in coded.plan.entries] == [False, False, True]


def _cells(kind):
    cells = json.loads(TUTORIAL.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_the_tutorial_runs_in_seconds_and_its_results_show_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names, shown = {}, []
    with within(10):
        for place, code in enumerate(_cells("code")):
            *body, last = ast.parse(code).body
            exec(compile(ast.Module(body, []), f"cell {place}", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(ast.unparse(last), names))
            else:
                exec(ast.unparse(last), names)
    assert names["small"].size_report().file_bytes <= 5050
    assert names["after"] > 0.9
    results = [value for value in shown if value is not None]
    assert len(results) == 5
    assert all(Parsed(value._repr_html_()).tags for value in results)
    (report,) = tmp_path.rglob("report.html")
    assert Parsed(report.read_text(encoding="utf-8")).pictures


def test_the_tutorial_is_a_notebook_without_results():
    notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_links_of_the_tutorial_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", "".join(_cells("markdown")))
    assert links
    assert [link for link in links if not (TUTORIAL.parent / link).exists()] == []


def test_the_keys_of_a_recipe_are_explained():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    keys = {entry.name for entry in fields(fewbits.Recipe)}
    settings = {entry.name for entry in fields(fewbits.Activations)}
    assert keys <= set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert settings <= set(re.findall(r"`(\w+)`", text))
