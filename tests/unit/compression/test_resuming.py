"""Searches that resume, processes that are killed, and what stays as it was."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

import fewbits
import interrupted
from fewbits.compression import compress
from fewbits.engine.paged.paging import Pager
from fewbits.errors import ConfigError

SLOPED = fewbits.RDOQ()
GPTQ = fewbits.GPTQ(bits=4)


@pytest.fixture
def on_disk(tmp_path):
    path = tmp_path / "net.safetensors"
    save_model(interrupted.network(), str(path))
    return path


@pytest.mark.parametrize("activations", [None, 8])
def test_pages_that_are_dropped_all_the_time_change_nothing(activations, on_disk, monkeypatch):
    drops = []

    class Often(Pager):
        def __init__(self) -> None:
            super().__init__(300)

        def release(self) -> None:
            drops.append(1)
            super().release()

    monkeypatch.setattr(compress, "Pager", Often)
    options = {"method": interrupted.recipe(GPTQ), "activations": activations}
    options["calibration"] = interrupted.batches()
    read = fewbits.compress(interrupted.empty(), **options, weights=on_disk)
    assert len(drops) > 20
    whole = fewbits.compress(interrupted.network(), **options)
    assert interrupted.outcome(read) == interrupted.outcome(whole)


class Halving(interrupted.Many):
    """Writes to a weight in every pass."""

    def forward(self, x):
        with torch.no_grad():
            self.between.weight.mul_(0.5)
        return super().forward(x)


def test_a_forward_pass_that_writes_to_weights_on_disk(on_disk):
    before = on_disk.read_bytes()
    net = Halving().eval()
    net.load_state_dict(interrupted.network().state_dict())
    whole = fewbits.compress(net, GPTQ, interrupted.batches())
    with fewbits.empty_weights():
        blank = Halving().eval()
    read = fewbits.compress(blank, GPTQ, interrupted.batches(), weights=on_disk)
    assert read.data == whole.data
    assert on_disk.read_bytes() == before


class Later:
    """Stops a search in the middle of its second run."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, event) -> None:
        self.seen += event.stage == "quantize" and event.done == 2
        if self.seen == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_budget_gives_the_same_file_from_disk_and_after_an_interruption(on_disk, tmp_path):
    options = {
        "method": SLOPED,
        "calibration": interrupted.batches(),
        "target_bytes": 950,
        "evaluations": 3,
    }
    whole = fewbits.compress(interrupted.network(), **options)
    assert len(whole.trace.trials) > 1
    read = fewbits.compress(interrupted.empty(), **options, weights=on_disk)
    assert read.data == whole.data
    options["resume"] = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        fewbits.compress(interrupted.network(), **options, progress=Later())
    assert len([path for path in (tmp_path / "a").iterdir() if path.is_dir()]) == 2
    resumed = fewbits.compress(interrupted.empty(), **options, weights=on_disk)
    assert resumed.data == whole.data
    assert [t.slope for t in resumed.trace.trials] == [t.slope for t in whole.trace.trials]


CHILD = """
import sys, time
import interrupted, fewbits

def progress(event):
    time.sleep(0.5 if event.done else 0)  # the parent looks every few milliseconds

fewbits.compress(
    interrupted.network(), fewbits.GPTQ(bits=4), interrupted.batches(), resume=sys.argv[1],
    progress=progress,
)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_process_that_is_killed_resumes(tmp_path):
    folder = tmp_path / "a"
    path = os.pathsep.join(filter(None, sys.path))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], env={**os.environ, "PYTHONPATH": path}
    )
    end = time.monotonic() + 60
    while len(list(folder.glob("*.fewbits"))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL
    resumed = fewbits.compress(interrupted.network(), GPTQ, interrupted.batches(), resume=folder)
    assert any(note.startswith("resumed after 3 of 6") for note in resumed.notes), resumed.notes
    whole = fewbits.compress(interrupted.network(), GPTQ, interrupted.batches())
    assert interrupted.outcome(resumed) == interrupted.outcome(whole)


class Drifting(nn.Module):
    """Its passes differ, by state that cannot be restored."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        Drifting.passes += 1
        return self.c(self.b(self.a(x + Drifting.passes)))


def test_notes_on_finished_layers_are_kept(tmp_path):
    options = {"method": fewbits.GPFQ(bits=4), "calibration": [torch.randn(8, 4)]}
    options["resume"] = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        fewbits.compress(Drifting().eval(), **options, progress=interrupted.Interrupt(1))
    plan = fewbits.compress(Drifting().eval(), **options).plan
    for entry in plan.entries:
        assert "give the layer different inputs" in entry.reason, entry.target.name


def facts(net):
    """Everything about a network that compressing must not change."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "memory": {name: tensor.data_ptr() for name, tensor in tensors.items()},
        "trained": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "versions": {n: t._version for n, t in tensors.items() if not t.is_inference()},
        "modes": {name: module.training for name, module in net.named_modules()},
        "hooks": [
            (name, list(module._forward_hooks), list(module._forward_pre_hooks))
            for name, module in net.named_modules()
        ],
        "classes": [type(module) for module in net.modules()],
        "values": {name: tensor.tolist() for name, tensor in net.state_dict().items()},
    }


MODES = {
    "gptq": {"method": interrupted.recipe(GPTQ)},
    "nearest with activations": {"method": fewbits.Nearest(bits=4), "activations": 8},
    "probed": {"method": interrupted.recipe(fewbits.Transform(slope=1e-4)), "activations": 8},
    "most kept": {"method": fewbits.Recipe((fewbits.Rule("between", GPTQ),)), "activations": 8},
    "budget": {"method": SLOPED, "target_bytes": 1000, "evaluations": 2},
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_the_callers_network_stays_as_it_was(options, resume, tmp_path):
    net = interrupted.network()
    net.conv.weight.requires_grad_(False)
    net.twice.register_forward_hook(lambda *_: None)
    net.head.train()
    before = facts(net)
    options = {**options, "resume": tmp_path / "a"} if resume else options
    coded = fewbits.compress(net, **options, calibration=interrupted.batches())
    assert facts(net) == before
    assert coded.load_into(interrupted.network())(interrupted.batches()[0]).isfinite().all()
    assert facts(net) == before


def test_a_result_does_not_see_later_changes_of_the_network():
    recipe = fewbits.Recipe((fewbits.Rule("between", GPTQ),))
    net = interrupted.network()
    expected = fewbits.compress(net, recipe, interrupted.batches()).data
    late = fewbits.compress(net, recipe, interrupted.batches())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert late.data == expected


def test_the_network_given_with_weights_is_not_filled(on_disk):
    net = interrupted.empty()
    fewbits.compress(net, GPTQ, interrupted.batches(), weights=on_disk)
    assert all(parameter.is_meta for parameter in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    "method", [GPTQ, SLOPED, fewbits.Transform(rate="none")], ids=lambda m: m.name
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_resume(dtype, method, tmp_path):
    options = {"method": method, "calibration": interrupted.batches()}
    whole = fewbits.compress(interrupted.network().to(dtype), **options)
    options["resume"] = tmp_path / "a"
    stop = interrupted.Interrupt(1)
    with pytest.raises(KeyboardInterrupt):
        fewbits.compress(interrupted.network().to(dtype), **options, progress=stop)
    resumed = fewbits.compress(interrupted.network().to(dtype), **options)
    assert interrupted.outcome(resumed) == interrupted.outcome(whole)


def test_in_inference_mode_and_of_inference_tensors(tmp_path):
    expected = fewbits.compress(interrupted.network(), GPTQ, interrupted.batches()).data
    net = interrupted.network()
    before = facts(net)
    with torch.inference_mode():
        assert fewbits.compress(net, GPTQ, interrupted.batches()).data == expected
        frozen = interrupted.network()
        assert next(frozen.parameters()).is_inference()
        assert fewbits.compress(frozen, GPTQ, interrupted.batches()).data == expected
    assert facts(net) == before
    folder = tmp_path / "a"
    assert fewbits.compress(frozen, GPTQ, interrupted.batches(), resume=folder).data == expected
    assert fewbits.compress(net, GPTQ, interrupted.batches(), resume=folder).data == expected


class Overlapping(nn.Module):
    """A kept half of a table as a parameter of its own, and a buffer bound to a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4)
        self.part = nn.Parameter(self.table.weight.data[:3])
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("bound", self.a.weight.data, persistent=False)

    def forward(self, x):
        return self.b(self.a(self.table(x) + self.part[0]) @ self.bound)


def test_views_and_bound_buffers(tmp_path):
    rules = (fewbits.Rule("*", GPTQ), fewbits.Rule("table", None))
    data = [torch.randint(0, 6, (4, 5))]
    net = Overlapping().eval()
    before = facts(net)
    whole = fewbits.compress(net, fewbits.Recipe(rules), data)
    assert facts(net) == before
    assert whole.plan.bound == {"bound": "a.weight"}
    kept = fewbits.compress(net, fewbits.Recipe(rules), data, resume=tmp_path)
    again = fewbits.compress(net, fewbits.Recipe(rules), data, resume=tmp_path)
    assert kept.data == again.data == whole.data
    twin = whole.load_into(Overlapping().eval())
    assert torch.equal(twin.bound, twin.a.weight)
    assert torch.equal(twin.part, net.part)


def test_parameters_in_one_flat_storage():
    expected = fewbits.compress(interrupted.network(), GPTQ, interrupted.batches()).data
    net = interrupted.network()
    flat = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(flat, net.parameters())
    assert fewbits.compress(net, GPTQ, interrupted.batches()).data == expected
    assert torch.equal(nn.utils.parameters_to_vector(net.parameters()), flat)


def test_temporary_folders_go_with_the_result(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    coded = fewbits.compress(interrupted.empty(), GPTQ, interrupted.batches(), weights=on_disk)
    assert len(list((tmp_path / "t").iterdir())) == 1
    coded.save(tmp_path / "a.fewbits")
    del coded
    gc.collect()
    assert list((tmp_path / "t").iterdir()) == []


def test_arguments(on_disk, tmp_path):
    net, data = interrupted.network(), interrupted.batches()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ConfigError, match="has other files"):
        fewbits.compress(net, GPTQ, data, resume=tmp_path / "mine")
    with pytest.raises(ConfigError, match="is a file"):
        fewbits.compress(net, GPTQ, data, resume=on_disk)
    with pytest.raises(ConfigError, match="resume must be a folder"):
        fewbits.compress(net, GPTQ, data, resume=3)
    with pytest.raises(ConfigError, match="weights must be a path"):
        fewbits.compress(net, GPTQ, data, weights=3)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["mine", "net.safetensors"]
