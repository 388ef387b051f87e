"""Two ranks give what one process gives; where one of them fails, both say so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from fewbits.engine.lockstep import quantizer

SCRIPT = Path(__file__).with_name("two_ranks.py")
METHODS = ("gpfq", "gptq", "qronos", "nearest", "rdoq", "transform", "activations", "few_batches")
MORE = ("search", "sensitivity")
DIFFERENT = {
    "other_data": "contents of the calibration batches",
    "other_count": "number of calibration batches (rank 1 '4', rank 0 '5')",
    "other_recipe": "recipe",
    "other_version": "version of fewbits (rank 1 '9.9', rank 0",
}
FAILING = (*DIFFERENT, "raises")
SHARE = 1e-3  # of the indices may differ, by one level: measured are 0


def start(kinds, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_PORT": port}
    given |= {"MASTER_ADDR": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), ",".join(kinds), str(out)],
            env={**given, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def run(kinds, out, codes=(0, 0)):
    running = start(kinds, out)
    errors = [process.communicate(timeout=300)[1] for process in running]
    for process, code, error in zip(running, codes, errors, strict=True):
        assert process.returncode == code, error[-3000:]
    return [torch.load(f"{out}.{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def of_one(kinds, folder):
    """What one process gives: this one."""
    spec = spec_from_file_location("two_ranks", SCRIPT)
    two_ranks = module_from_spec(spec)
    spec.loader.exec_module(two_ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizer, "_WORTH_SHARING", two_ranks.WORTH_SHARING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {kind: two_ranks.told(kind, 0, folder / "one") for kind in kinds}


@pytest.fixture(scope="module")
def results(folder):
    """What one process gives, and what two give, of which the second dies at the end."""
    two = run((*METHODS, *MORE, *FAILING, "killed"), folder / "two", codes=(0, 9))
    return of_one((*METHODS, *MORE), folder), two


def assert_close(one, two):
    # Of 3,600 bytes: another of a small layer's few steps makes 70.
    assert len(two["data"]) == pytest.approx(len(one["data"]), rel=0.03)
    assert two["distance"] == pytest.approx(one["distance"], rel=0.2)


def assert_alike(one, two):
    different = total = 0
    for name, index in one["indices"].items():
        gap = (index.long() - two["indices"][name].long()).abs()
        assert int(gap.max()) <= 1, name
        different, total = different + int((gap > 0).sum()), total + gap.numel()
    assert different <= SHARE * total
    assert len(two["data"]) == pytest.approx(len(one["data"]), rel=SHARE)
    assert two["notes"] == one["notes"]


def check_kind(kind, one, first, second):
    # Moments of gradients are float32 sums, and their last bits may decide between two steps.
    check = assert_close if kind in ("rdoq", "transform") else assert_alike
    check(one[kind], first[kind])
    assert int(sum(index.count_nonzero() for index in one[kind]["indices"].values())) > 1000
    for name, value in first[kind]["state"].items():  # both ranks have the same to the last bit
        assert torch.equal(value, second[kind]["state"][name]), name
    assert first[kind]["grids"] == second[kind]["grids"] == one[kind]["grids"]


def check_error_of_one(first, second):
    assert first["error"] == second["error"] == "CalibrationError"
    assert "the second rank cannot go on" in second["text"]
    assert first["text"] == f"rank 1: {second['text']}"


def check_named(ranks, kind):
    for rank in ranks:
        assert rank[kind]["error"] == "ConfigError"
        assert DIFFERENT[kind] in rank[kind]["text"]
        assert "rank 1" in rank[kind]["text"]


def test_in_every_run_two_ranks_quantize_as_one_process_does(tmp_path):
    """The slow tests do so with every method, and let a rank die."""
    first, second = run(("gptq", "activations", "other_data", "raises"), tmp_path / "two")
    one = of_one(("gptq", "activations"), tmp_path)
    for kind in one:
        check_kind(kind, one, first, second)
    check_named((first, second), "other_data")
    check_error_of_one(first["raises"], second["raises"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_two_ranks_quantize_as_one_process_does(results, kind):
    one, ranks = results
    check_kind(kind, one, *ranks)


@pytest.mark.slow
def test_a_search_of_two_ranks_takes_the_same_decisions(results):
    one, (first, second) = results
    assert first["search"]["trials"] == second["search"]["trials"]
    trials = zip(first["search"]["trials"], one["search"]["trials"], strict=True)
    for (slope, size, score), (slope_of_one, size_of_one, score_of_one) in trials:
        assert slope == pytest.approx(slope_of_one, rel=1e-6)
        # Of 2,400 bytes: the last bits of sums may choose another of a layer's few steps.
        assert size == pytest.approx(size_of_one, rel=0.03)
        assert score == pytest.approx(score_of_one, abs=0.05)


@pytest.mark.slow
def test_sensitivities_are_the_same(results):
    one, (first, second) = results
    assert first["sensitivity"] == second["sensitivity"]
    for row, of_one in zip(first["sensitivity"]["rows"], one["sensitivity"]["rows"], strict=True):
        assert (row["name"], row["bytes"]) == (of_one["name"], of_one["bytes"])
        assert row["kl"] == pytest.approx(of_one["kl"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIFFERENT)
def test_ranks_that_are_not_given_the_same_are_named(results, kind):
    check_named(results[1], kind)


@pytest.mark.slow
def test_an_error_of_one_rank_is_one_of_all(results):
    check_error_of_one(*(rank["raises"] for rank in results[1]))


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_other_and_both_resume(results, folder):
    left, gone = results[1]
    assert "killed" not in gone
    assert left["killed"]["error"] == "RankError"
    assert "lost another rank at the step" in left["killed"]["text"]
    assert "--resume" in left["killed"]["text"]
    kept = sorted((folder / "run").glob("*.fewbits"))
    assert kept  # the layers before the last one
    first, second = run(("resumed", "gptq"), folder / "resumed")
    assert any("resumed after" in note for note in first["resumed"]["notes"])
    assert first["resumed"]["data"] == first["gptq"]["data"]
    for name, value in first["resumed"]["state"].items():
        assert torch.equal(value, second["resumed"]["state"][name]), name
