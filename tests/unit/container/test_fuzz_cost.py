"""A short search for dear files, as benchmarks/fuzz_cost.py makes long ones."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fewbits.coding import CODECS
from fewbits.container import decode
from fewbits.errors import CorruptFileError

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CASES = 110  # the sound files of every kind among them


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fuzz_cost
        import fuzz_genes
        import fuzz_targets

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fuzz_genes, "seeds", cache(fuzz_genes.seeds))  # each file takes a while
            yield fuzz_cost, fuzz_genes, fuzz_targets
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="it reads Linux's /proc")
@pytest.mark.parametrize("name", [pytest.param("load", marks=pytest.mark.slow), "inspect"])
def test_nothing_dear_is_found(fuzz, name):
    found = fuzz[0].search(name, seed=5, cases=CASES)
    assert found.failures == []
    assert found.outcomes["read"] > 40
    assert found.outcomes["refused"] > 0  # what is kept depends on measured times
    assert found.best["seconds"][0][0] > 0


def test_searches_begin_with_sound_inputs(fuzz, tmp_path):
    targets = fuzz[2]
    for name in ("recipe", "trace", "run", "checkpoint"):
        for gene in targets.TARGETS[name].seeds():
            assert targets.judge(targets.TARGETS[name], gene.data(), tmp_path) == "read", name


def test_what_is_dear_fails(fuzz, tmp_path, monkeypatch):
    search, _, targets = fuzz
    assert search.bounds(500) == (2, 2e8)
    assert search.bounds(10**6) == (60, 1e9)
    assert "CPU seconds" in search._wrong("read", 2.5, 0, 500)
    assert "bytes of memory" in search._wrong("refused", 0.1, 3 * 10**8, 500)
    assert search._wrong("ValueError: x", 0.1, 0, 500) == "ValueError: x"
    assert search._wrong("read", 30, 8 * 10**8, 10**6) == ""

    def hide(_):
        raise CorruptFileError("x") from MemoryError()

    hidden = targets.Target(hide, (CorruptFileError,), list)
    with pytest.raises(AssertionError, match="hides MemoryError"):
        targets.judge(hidden, b"", tmp_path)


def test_packed_genomes_stand_for_files(fuzz):
    _, genes, _ = fuzz
    rng = np.random.default_rng(0)
    files = genes.files()
    for gene in files[::6]:
        again = decode(genes.unpacked(genes.packed(gene)))
        assert list(again.tensors) == list(decode(gene.data()).tensors)
        assert isinstance(gene.changed(rng).data(), bytes)
    for gene in (genes._settings(files[0], rng) for _ in range(12)):
        names = {codec.name for codec in CODECS.values() if codec.number in gene.codecs}
        assert names
        assert genes.unpacked(genes.packed(gene)) == gene.data()
    for text in (b"", b"\1", b"\0\0\0\0", b"\3\4\0\0{}x", bytes(40), b"\xff" * 40):
        assert genes.unpacked(text).startswith(b"\x89FWB")
