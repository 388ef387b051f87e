"""A few bytes of pickle cannot ask for memory or time without end."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

from cpu_time import within
from fewbits.errors import SourceError
from fewbits.sources.checkpoints.state_dicts import read_state_dict
from fewbits.training.loop.checkpoint import RunFolder


def with_pickle(path, text, method=zipfile.ZIP_STORED):
    """Write what torch.save writes of a small state dict, with another pickle inside."""
    out = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            body = text if name.endswith("data.pkl") else old.read(name)
            new.writestr(zipfile.ZipInfo(name), body, method)
    return path


def doubled(levels):
    """Return a pickle of a dict whose key is a tuple of tuples, each twice in the next."""
    text = b"\x80\x02}K\x01\x85q\x00"
    for level in range(levels):
        text += b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return text + b"K\x01s."


BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R."
OPCODES = b"\x80\x02(" + b"}" * 3_000_000 + b"t."  # deflated, they take next to nothing


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (BYTEARRAY, zipfile.ZIP_STORED),
        (BYTEARRAY, zipfile.ZIP_DEFLATED),
        (doubled(29), zipfile.ZIP_STORED),
        (OPCODES, zipfile.ZIP_DEFLATED),
    ],
    ids=["bytearray", "bytearray, deflated", "keys", "opcodes"],
)
def test_pickles_that_ask_for_more_than_they_hold_are_refused(tmp_path, text, method):
    path = with_pickle(tmp_path / "net.pt", text, method)
    with within(2), pytest.raises(SourceError, match="cannot be loaded safely"):
        read_state_dict(path)


@pytest.mark.parametrize("text", [BYTEARRAY, doubled(29)], ids=["bytearray", "keys"])
def test_the_same_pickles_in_files_older_than_the_zips(tmp_path, text):
    path = tmp_path / "net.pt"
    path.write_bytes(pickle.dumps(1, 2) + text)
    with pytest.raises(SourceError, match="cannot be loaded safely"):
        read_state_dict(path)


def test_checkpoints_of_a_run_are_looked_at_too(tmp_path):
    path = tmp_path / "last.pt"
    RunFolder.write(path, {"schema": "x", "keys": {(1, (2, 3)): torch.zeros(2)}})
    assert RunFolder.read(path)["keys"]


def test_what_people_save_is_read(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 4)).sum().backward()
    adam.step()
    beside = {"epoch": 3, "losses": [0.5] * 1000, "betas": (0.9, (1, 2))}
    beside["optimizer"] = adam.state_dict()
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pt"
        state = {**beside, "state_dict": net.state_dict()}
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        assert read_state_dict(path).keys() == net.state_dict().keys()
