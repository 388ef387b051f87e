"""What every registered exporter must do, whatever it writes."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ConfigError, MissingExtraError
from fewbits.exporters import EXPORTERS, Exporter, export
from fewbits.exporters.base import NEEDS

pytestmark = pytest.mark.usefixtures("operators_once")
NAMES = pytest.mark.parametrize("name", EXPORTERS)
X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=["grid", "codebook and raw", "activations"])
def case(request):
    """A network, and one way to compress it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    if request.param == "codebook and raw":
        keep = fewbits.Rule("0.weight", None)
        rules = (keep, fewbits.Rule("*", fewbits.GPFQ(levels=5)))
        return net, fewbits.compress(net, fewbits.Recipe(rules), X)
    activations = 8 if request.param == "activations" else None
    return net, fewbits.compress(net, fewbits.Nearest(bits=8), X, activations=activations)


def given(name, net):
    """Return what the exporter needs."""
    kinds = {"model": net, "inputs": X[:2]}
    return dict(list(kinds.items())[: NEEDS.index(EXPORTERS[name].needs)])


def written(path):
    """Return the bytes of a file, or of all files of a folder."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = [part for part in sorted(path.rglob("*")) if part.is_file()]
    return {str(part.relative_to(path)): part.read_bytes() for part in files}


def made(name, case, path):
    net, coded = case
    try:
        return export(coded, path, to=name, **given(name, net))
    except MissingExtraError as error:
        pytest.skip(str(error))


@NAMES
def test_the_descriptor(name):
    kind = EXPORTERS[name]
    assert isinstance(kind(), Exporter)
    assert kind.name == name
    assert kind.summary
    assert kind.runs
    assert kind.__doc__
    assert isinstance(kind.keeps_codes, bool)
    assert isinstance(kind.extra, str)
    assert kind.suffix == "" or kind.suffix.startswith(".")
    with pytest.raises(TypeError):
        kind("a positional option")
    if fields(kind):
        with pytest.raises(FrozenInstanceError):
            setattr(kind(), fields(kind)[0].name, 3)


@NAMES
def test_an_export_is_all_there_changes_nothing_and_is_that_of_the_file(name, case, tmp_path):
    net, coded = case
    before, state = copy.deepcopy(net.state_dict()), coded.state_dict()
    path = tmp_path / f"net{EXPORTERS[name].suffix}"
    told = made(name, case, path)
    assert told.path == path
    assert told.bytes == sum(map(len, written(path).values())) > 0
    assert told.to_dict()["file"] == str(path)
    assert told.to_dict()["bytes"] == told.bytes
    assert all(isinstance(note, str) and note for note in told.notes)
    assert set(told.weights) <= set(coded.tensors)
    assert set(told.inputs) <= set(coded.contents.activations)
    if not EXPORTERS[name].keeps_codes:
        assert told.weights == {}
    for tensors, others in ((net.state_dict(), before), (coded.state_dict(), state)):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())
    coded.save(tmp_path / "net.fewbits")
    again = tmp_path / f"again{path.suffix}"
    export(tmp_path / "net.fewbits", again, to=name, **given(name, net))
    assert written(again) == written(path)


@NAMES
def test_what_is_missing_or_unknown_is_told_before_anything_is_written(name, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    coded = fewbits.compress(net, fewbits.Nearest())
    kind, path = EXPORTERS[name], tmp_path / f"net{EXPORTERS[name].suffix}"
    needed = given(name, net)
    for what in needed:
        rest = {key: value for key, value in needed.items() if key != what}
        with pytest.raises(ConfigError, match=f"'{name}' needs {what}="):
            export(coded, path, to=name, **rest)
    known = ", ".join(entry.name for entry in fields(kind)) or "none"
    with pytest.raises(ConfigError, match=f"'{name}' has no option 'colour'. It has: {known}"):
        export(coded, path, to=name, colour="red", **needed)
    if kind.suffix:
        with pytest.raises(ConfigError, match=f"must end in {kind.suffix}"):
            export(coded, tmp_path / "net.other", to=name, **needed)
    assert list(tmp_path.iterdir()) == []
