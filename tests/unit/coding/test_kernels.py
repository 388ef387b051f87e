"""Kernels give the same bytes plain and compiled; nothing is compiled before it pays."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fewbits.coding import CODECS, Layout, kernels, numbers
from fewbits.coding.mix import mix
from fewbits.coding.rans import rans

RNG = np.random.default_rng(5)
SMOOTH = np.cumsum(RNG.normal(size=(6, 18)), axis=1)
MATRICES = {
    "kernels": (np.rint(SMOOTH), Layout(6, 18, 9, 3)),
    "rows": (np.rint(RNG.laplace(0, 2, (5, 23))), Layout(5, 23)),
    "picture": (np.rint(SMOOTH[:, :16] * 2), Layout(6, 16, 1, 4)),
    "sparse": (RNG.integers(0, 20, (9, 11)) // 18, Layout(9, 11)),
    "one side": (RNG.integers(0, 9, (4, 12)), Layout(4, 12, 4, 2)),
    "wide": (RNG.integers(-(2**31), 2**31, (3, 8)), Layout(3, 8)),
    "heavy tails": (np.rint(RNG.standard_t(1, (8, 12)) * 40), Layout(8, 12)),
}


@pytest.fixture
def force(monkeypatch):
    """Return a function that makes every codec use some kernels."""

    def choose(found: SimpleNamespace) -> None:
        for module in (mix, rans, numbers):
            monkeypatch.setattr(module, "pick", lambda steps: found)

    return choose


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("codec", ["rans", "mix"])
def test_plain_and_compiled_kernels_give_the_same_bytes(codec, name, force):
    values, layout = MATRICES[name]
    values = values.astype(np.int32)
    found = []
    for chosen in (kernels.plain(), kernels.compiled()):
        force(chosen)
        # Small matrices rarely pay: segments are called below the limit that encode imposes.
        data = CODECS[codec].encode(values, layout)
        found.append((data, CODECS[codec].measure(values, layout)))
    assert found[0] == found[1]
    data = found[0][0]
    if data is not None:
        for chosen in (kernels.plain(), kernels.compiled()):
            force(chosen)
            assert np.array_equal(CODECS[codec].decode(data, layout), values)


def test_a_group_is_the_same_plain_and_compiled(force):
    layouts = [Layout(4, 18, 9, 3), Layout(3, 10), Layout(4, 18, 9, 3)]
    matrices = [np.rint(RNG.normal(size=(x.rows, x.columns))).astype(np.int32) for x in layouts]
    found = []
    for chosen in (kernels.plain(), kernels.compiled()):
        force(chosen)
        found.append(CODECS["mix"].encode_group(matrices, layouts))
        back = CODECS["mix"].decode_group(found[0], layouts)
        assert all(np.array_equal(a, b) for a, b in zip(back, matrices, strict=True))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [name for name in MATRICES if name not in ("wide", "heavy tails")])
def test_prices_are_the_same_plain_and_compiled(name, force):
    values, layout = MATRICES[name]
    found = []
    for chosen in (kernels.plain(), kernels.compiled()):
        force(chosen)
        found.append(CODECS["mix"].prices(values.astype(np.int32), layout)[1])
    assert np.array_equal(*found)


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_nothing_is_compiled_before_plain_work_has_taken_as_long():
    _run(
        "import sys, numpy as np, fewbits, fewbits.coding as c\n"
        "v = np.arange(144).reshape(12, 12) % 7\n"
        "for effort in ('fast', 'smallest'):\n"
        "    name, data = c.encode_symbols(v, c.Layout(12, 12), effort)\n"
        "    c.decode_symbols(c.CODECS[name].number, data, c.Layout(12, 12))\n"
        "assert 'numba' not in sys.modules and not c.kernels.is_compiled()\n"
        "for _ in range(9):\n"
        "    c.CODECS['mix'].encode(v, c.Layout(12, 12))\n"
        "assert c.kernels.is_compiled()\n"
    )


def test_compilation_is_announced_where_nothing_is_cached(tmp_path):
    code = (
        f"import os; os.environ['NUMBA_CACHE_DIR'] = {str(tmp_path)!r}\n"
        "import logging\n"
        "from fewbits.coding import kernels\n"
        "class Told(logging.Handler):\n"
        "    def emit(self, record): told.append(record.getMessage())\n"
        "told = []; logging.getLogger('fewbits').addHandler(Told())\n"
        "kernels.compiled(); kernels.compiled()\n"
        "assert len(told) == 1 and 'once' in told[0], told\n"
        "import numpy as np\n"
        "kernels.compiled().count_symbols(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int32),"
        " np.zeros(1, np.uint8), np.zeros((1, 256), np.int64))\n"
    )
    _run(code)
    _run(code.replace("len(told) == 1 and 'once' in told[0]", "told == []"))


def test_two_kernels_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two kernels"):
        kernels.kernel(kernels.plain().walk)
