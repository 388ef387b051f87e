"""Rows of one tensor, read alone: only the chunks that hold them are fetched."""

import numpy as np
import pytest

from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, Layout, RawTensor
from fewbits.container import encode, read_tensor, streams, write
from fewbits.container.files import _fetch_from
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(3)
ROWS, COLUMNS = 300, 40
INDEX = RNG.integers(-3, 4, (ROWS, COLUMNS)).astype(np.int32)
STEPS = np.linspace(0.1, 1, ROWS).astype(np.float32)
FLOATS = RNG.normal(size=(600, 40)).astype("<f4")


CHUNK = 1000


@pytest.fixture(scope="module")
def written():
    book = Codebook(np.arange(7, dtype=np.float32))
    tensors = {
        "steps": GridTensor((ROWS, 4, 10), "float32", INDEX, STEPS),
        "one step": GridTensor((ROWS, COLUMNS), "float32", INDEX, STEPS[:1]),
        "book": CodebookTensor((ROWS, COLUMNS), "float32", INDEX + 3, book, STEPS),
        "raw": RawTensor((600, 40), "float32", FLOATS.view(np.uint8).reshape(-1)),
        "small": RawTensor((4,), "float32", FLOATS[0, :4].view(np.uint8)),
        "turned": GridTensor(
            (COLUMNS, ROWS), "float32", INDEX, STEPS, layout=Layout((ROWS, COLUMNS), (1, 0))
        ),
        "nothing": GridTensor((0, 3), "float32", np.zeros((0, 3), np.int32), STEPS[:1]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", CHUNK)
        return encode(Contents(tensors))


@pytest.fixture
def path(written, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", CHUNK)
    write(written, tmp_path / "net.fewbits")
    return tmp_path / "net.fewbits"


@pytest.mark.parametrize("name", ["steps", "one step", "book"])
@pytest.mark.parametrize("rows", [(0, 1), (24, 26), (25, 50), (7, 299), (0, ROWS)])
def test_some_rows_of_a_coded_tensor(path, name, rows):
    whole, part = read_tensor(path, name), read_tensor(path, name, rows)
    np.testing.assert_array_equal(part.dequantize(), whole.dequantize()[slice(*rows)])
    assert part.shape == (rows[1] - rows[0], *whole.shape[1:])


def test_some_rows_of_floats(path):
    part = read_tensor(path, "raw", (100, 103))
    np.testing.assert_array_equal(part.data.view("<f4").reshape(3, 40), FLOATS[100:103])


def test_only_their_chunks_are_read(path, monkeypatch):
    fetched = []

    def counting(file):
        fetch = _fetch_from(file)

        def counted(start, end):
            fetched.append(end - start)
            return fetch(start, end)

        return counted

    monkeypatch.setattr("fewbits.container.files._fetch_from", counting)
    read_tensor(path, "one step")
    whole = len(fetched)
    fetched.clear()
    read_tensor(path, "one step", (26, 27))
    assert len(fetched) == whole - 11  # of 12 chunks


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("steps", (5, 5)),
        ("steps", (-1, 5)),
        ("steps", (0, ROWS + 1)),
        ("small", (0, 1)),
        ("turned", (0, 1)),
        ("nothing", (0, 0)),
    ],
)
def test_rows_that_cannot_be_read_alone(path, name, rows):
    with pytest.raises(ConfigError, match="Read the whole tensor"):
        read_tensor(path, name, rows)


def test_a_damaged_chunk_matters_only_to_its_rows(path):
    data = bytearray(path.read_bytes())
    data[12] ^= 1  # of the first chunk of the first tensor
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="rows 0 to 25"):
        read_tensor(path, "steps", (3, 4))
    assert read_tensor(path, "steps", (200, 210)).shape == (10, 4, 10)
