"""Two ranks give what one process gives; where one of them fails, both say so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")
METHODS = ("gpfq", "gptq", "qronos", "nearest", "rdoq", "transform", "activations", "few_batches")
MORE = ("search", "sensitivity")
FAILING = ("other_data", "other_count", "other_recipe", "other_version", "raises")
SHARE = 1e-3  # of the indices may differ, by one level: measured are 0


def start(kinds, out, ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_PORT": port}
    given |= {"MASTER_ADDR": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), ",".join(kinds), str(out)],
            env={**given, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def run(kinds, out, ranks, codes=(0, 0)):
    running = start(kinds, out, ranks)
    errors = [process.communicate(timeout=300)[1] for process in running]
    for process, code, error in zip(running, codes, errors, strict=False):
        assert process.returncode == code, error[-3000:]
    files = [Path(f"{out}.{rank}.pt") for rank in range(ranks) if not codes[rank]]
    return [torch.load(file, weights_only=False) for file in files]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (one,) = run((*METHODS, *MORE), folder / "one", 1)
    return one, run((*METHODS, *MORE, *FAILING), folder / "two", 2)


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


@pytest.mark.parametrize("kind", METHODS)
def test_two_ranks_quantize_as_one_process_does(results, kind):
    one, (first, second) = results
    # Moments of gradients are float32 sums, and their last bits may decide between two steps.
    check = assert_close if kind in ("rdoq", "transform") else assert_alike
    check(one[kind], first[kind])
    assert int(sum(index.count_nonzero() for index in one[kind]["indices"].values())) > 1000
    for name, value in first[kind]["state"].items():  # both ranks have the same to the last bit
        assert torch.equal(value, second[kind]["state"][name]), name
    assert first[kind]["grids"] == second[kind]["grids"] == one[kind]["grids"]


def test_a_search_of_two_ranks_takes_the_same_decisions(results):
    one, (first, second) = results
    assert first["search"]["trials"] == second["search"]["trials"]
    trials = zip(first["search"]["trials"], one["search"]["trials"], strict=True)
    for (slope, size, score), (slope_of_one, size_of_one, score_of_one) in trials:
        assert slope == pytest.approx(slope_of_one, rel=1e-6)
        # Of 2,400 bytes: the last bits of sums may choose another of a layer's few steps.
        assert size == pytest.approx(size_of_one, rel=0.03)
        assert score == pytest.approx(score_of_one, abs=0.05)


def test_sensitivities_are_the_same(results):
    one, (first, second) = results
    assert first["sensitivity"] == second["sensitivity"]
    for row, of_one in zip(first["sensitivity"]["rows"], one["sensitivity"]["rows"], strict=True):
        assert (row["name"], row["bytes"]) == (of_one["name"], of_one["bytes"])
        assert row["kl"] == pytest.approx(of_one["kl"], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("other_data", "contents of the calibration batches"),
        ("other_count", "number of calibration batches (rank 1 '4', rank 0 '5')"),
        ("other_recipe", "recipe"),
        ("other_version", "version of fewbits (rank 1 '9.9', rank 0"),
    ],
)
def test_ranks_that_are_not_given_the_same_are_named(results, kind, what):
    for rank in results[1]:
        assert rank[kind]["error"] == "ConfigError"
        assert what in rank[kind]["text"]
        assert "rank 1" in rank[kind]["text"]


def test_an_error_of_one_rank_is_one_of_all(results):
    first, second = (rank["raises"] for rank in results[1])
    assert first["error"] == second["error"] == "CalibrationError"
    assert "the second rank cannot go on" in second["text"]
    assert first["text"] == f"rank 1: {second['text']}"


def test_a_rank_that_dies_ends_the_other_and_both_resume(tmp_path):
    (left,) = run(("killed",), tmp_path / "killed", 2, codes=(0, 9))
    assert left["killed"]["error"] == "RankError"
    assert "lost another rank at the step" in left["killed"]["text"]
    assert "--resume" in left["killed"]["text"]
    kept = sorted((tmp_path / "run").glob("*.fewbits"))
    assert kept  # the layers before the last one
    first, second = run(("resumed", "gptq"), tmp_path / "resumed", 2)
    assert any("resumed after" in note for note in first["resumed"]["notes"])
    assert first["resumed"]["data"] == first["gptq"]["data"]
    for name, value in first["resumed"]["state"].items():
        assert torch.equal(value, second["resumed"]["state"][name]), name
