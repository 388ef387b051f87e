"""A coded model read back is what was saved, without plan and recipe."""

import pytest
import torch

import fewbits
from fewbits.compression import coded_model
from fewbits.errors import CorruptFileError


def test_what_was_saved_is_loaded(digits_net, digits, tmp_path):
    result = fewbits.compress(digits_net, "gpfq", digits[0][:128])
    size = result.save(tmp_path / "net.fewbits")
    loaded = fewbits.CodedModel.load(tmp_path / "net.fewbits")
    assert type(loaded) is fewbits.CodedModel
    assert len(loaded.encode("balanced")) == size
    assert loaded.data == result.data
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in result.state_dict().items())
    assert "size_report" in repr(loaded)


def test_a_damaged_file_is_refused(digits_net, tmp_path):
    fewbits.compress(digits_net, "nearest").save(tmp_path / "net.fewbits")
    data = (tmp_path / "net.fewbits").read_bytes()
    (tmp_path / "net.fewbits").write_bytes(data[:-1])
    with pytest.raises(CorruptFileError):
        fewbits.CodedModel.load(tmp_path / "net.fewbits")


@pytest.fixture
def encodings(monkeypatch):
    """The efforts of all encodings so far."""
    efforts = []
    for place, what in (
        ("encode", coded_model.encode),
        ("write_contents", coded_model.write_contents),
    ):

        def counted(*args, what=what):
            efforts.append(next(arg for arg in args if isinstance(arg, str)))
            return what(*args)

        monkeypatch.setattr(coded_model, place, counted)
    return efforts


def test_sizes_are_of_what_was_written_last_and_encode_nothing_more(
    digits_net, tmp_path, encodings
):
    coded = fewbits.compress(digits_net, "nearest")
    path = tmp_path / "net.fewbits"
    for efforts in (["fast"], ["fast", "smallest"]):
        size = coded.save(path, efforts[-1])
        assert path.stat().st_size == size
        assert coded.size_report().file_bytes == size
        assert coded.bits_per_weight == 8 * size / coded.size_report().weights
        assert coded.compression_ratio == coded.size_report().float_bytes / size
        assert f"{size:,} bytes" in repr(coded)
        assert f"{size:,} bytes" in coded._repr_html_()
        assert encodings == efforts


def test_an_encoding_that_is_kept_is_written(digits_net, tmp_path, encodings):
    coded = fewbits.compress(digits_net, "nearest", effort="fast")
    data = coded.data
    assert coded.save(tmp_path / "net.fewbits") == len(data) == coded.size_report().file_bytes
    assert encodings == ["fast"]


def test_a_network_of_another_dtype_is_compared_to_its_own_bytes(tmp_path):
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 64, bias=False)
    single = fewbits.compress(plain, "nearest")
    coded = fewbits.compress(plain.bfloat16(), "nearest")
    size = coded.save(tmp_path / "net.fewbits")
    assert coded.compression_ratio == 2 * 64 * 64 / size
    assert single.compression_ratio > 1.9 * coded.compression_ratio
    assert "x smaller than in bfloat16" in repr(coded)
    assert fewbits.inspect(tmp_path / "net.fewbits").report.float_bytes == 2 * 64 * 64
