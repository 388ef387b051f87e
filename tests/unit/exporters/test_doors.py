"""The table of doors in docs/deploy.md: every exporter and hub door is in it, with a true row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fewbits
import fewbits.hub
from fewbits.exporters import EXPORTERS

ROOT = Path(__file__).parents[3]
CELLS = ("door", "how", "opened with", "test", "measured")


def rows():
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    part = text.partition("## Doors")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == CELLS
    return [dict(zip(CELLS, line, strict=True)) for line in cells[2:]]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_every_door_has_its_row():
    told = {name for row in rows() for name in names(row["door"])}
    ours = {name for name, kind in EXPORTERS.items() if kind.__module__.startswith("fewbits.")}
    hub = {name for name in dir(fewbits.CodedModel) if name in ("save_pretrained", "push_to_hub")}
    assert len(hub) == 2
    assert ours | hub | set(fewbits.hub.__all__) <= told


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["door"])
def test_a_row_is_true(row):
    """Its tests import what opens the door; its record is there."""
    tests = [(ROOT / path).read_text(encoding="utf-8") for path in names(row["test"])]
    assert tests
    for package in names(row["opened with"]):
        imported = rf'importorskip\("{package}"|^\s*(import|from) {package}\b'
        assert any(re.search(imported, text, re.MULTILINE) for text in tests), package
    for name in names(row["measured"]):
        assert (ROOT / "benchmarks" / "results" / f"{name}.json").exists(), name
    assert names(row["measured"]) or row["measured"] == "not measured"


def test_packages_that_make_test_lacks_are_marked():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = re.findall(r'^  "([\w-]+)', re.search(r"^test = .*?^\[", text, re.M | re.S)[0], re.M)
    told += ["numpy", "safetensors"]  # which fewbits itself needs
    for row in rows():
        for package, mark in re.findall(r"`([\w-]+)`(°?)", row["opened with"]):
            assert (package.replace("_", "-") in {n.replace("_", "-") for n in told}) == (not mark)
