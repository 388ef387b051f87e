"""A coded model read back is what was saved, without plan and recipe."""

import pytest
import torch

import fewbits
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
