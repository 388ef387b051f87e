"""Where a compression keeps what does not fit in memory."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from fewbits.compression.storage.journal import Finished
from fewbits.compression.storage.workspace import Workspace
from fewbits.engine.paged.paging import Pager
from fewbits.errors import ConfigError


def test_a_network_in_memory_needs_no_folder_and_gets_new_memory():
    workspace = Workspace.of(None, None)
    assert workspace.begin("k") is None
    assert workspace.kept is None
    layer = nn.Linear(3, 3)
    workspace.place({"weight": layer.weight})
    before = layer.weight.data
    workspace.set_values("weight", layer.weight, torch.zeros(3, 3))
    assert not layer.weight.any()
    assert before.any()
    workspace.release()


def test_a_network_on_disk_has_a_temporary_folder_that_goes_with_it():
    workspace = Workspace.of(Pager(), None)
    journal = workspace.begin("k")
    folder = workspace.kept.path
    journal.write(Finished("module a", ()), {}, {})
    assert (folder / "journal" / "000000.fewbits").exists()
    layer = nn.Linear(3, 3).half()
    workspace.place({"weight": layer.weight})
    workspace.set_values("weight", layer.weight, torch.full((3, 3), 2.0))
    workspace.release()
    assert layer.weight.dtype == torch.float16
    assert bool((layer.weight == 2).all())
    assert not list(folder.glob("*.bin"))
    del workspace, journal
    gc.collect()
    assert not folder.exists()
    assert bool((layer.weight == 2).all())


def test_a_folder_to_resume_from_is_created_and_kept(tmp_path):
    workspace = Workspace.of(Pager(), str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    workspace.begin("k").write(Finished("module a", ()), {}, {})
    workspace.place({"weight": torch.ones(3)})
    assert workspace.kept is None
    del workspace
    gc.collect()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["000000.fewbits", "journal.json"]
    again = Workspace.of(None, tmp_path / "a").begin("k")
    assert [part.part for part in again.finished] == ["module a"]


def test_arguments(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        Workspace.of(None, tmp_path / "file")
    with pytest.raises(ConfigError, match="resume must be a folder"):
        Workspace.of(None, 3)
