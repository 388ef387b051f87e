"""Sweeps and sensitivities on a cluster, with a stand-in for ray: the same as on one machine."""

from __future__ import annotations

import json
from operator import itemgetter

import pytest
import torch
from safetensors.torch import save_file

import fewbits
from cli_runs import run, run_json
from fake_ray import stand_in
from fewbits.cli.jobs import points
from fewbits.errors import ClusterError
from fewbits.methods import METHODS
from fewbits.search import Ray
from sloped import Sloped

MODEL = "builtin:digits-mlp"
NETWORK = (MODEL, "--weights", "net.safetensors", "--data", "digits")
QUICK = ("--calibration-samples", 200, "--effort", "fast")
SETTINGS = ("--methods", "nearest,sloped", "--bits", "3,4", "--slopes", "1e-3")
SEARCHES = ("--target-bytes", "7KB,300", "--max-drop", "1%,20%")
SWEEP = ("sweep", *NETWORK, *QUICK, *SETTINGS, *SEARCHES)
RAY = ("--engine", "ray", "--ray-address", "auto")


@pytest.fixture
def here(state, tmp_path, monkeypatch):
    """Work in a fresh folder that holds the checkpoint."""
    save_file(state, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS._entries, "sloped", Sloped)
    monkeypatch.setattr(points, "_benches", {})
    return tmp_path


@pytest.fixture
def install(monkeypatch):
    with stand_in(monkeypatch) as installed:
        yield installed


def plain(found):
    """The points of a sweep without their times."""
    return [{k: v for k, v in point.items() if k != "seconds"} for point in found["points"]]


def bits_of(point):
    return point.settings.get("bits")


def test_a_sweep_on_a_cluster_is_the_serial_one(here, install):
    serial = run_json(*SWEEP, "-o", "serial.json")
    limits = [point["goal"] and point["goal"]["limit"] for point in serial["points"]]
    searched = [7000.0, 300.0, 0.01, 0.2]
    assert limits == [None, None, *searched, None, *searched]
    near, far = serial["points"][-2:]
    assert near["goal"] == {"kind": "max_drop", "limit": 0.01}
    assert far["bytes"] < near["bytes"]
    killed = install(fate=lambda p, tries: "killed" if bits_of(p) == 4 and tries == 1 else "done")
    found = run_json(*SWEEP, "-o", "ray.json", *RAY)
    assert plain(found) == plain(serial)
    assert "failed" not in found
    assert killed.calls == ["init auto", "shutdown"]
    assert sorted(killed.begun.values()) == [*[1] * 10, 2]
    assert json.loads((here / "ray.json").read_text()) == {
        k: v for k, v in found.items() if k != "file"
    }
    again = install()
    assert run_json(*SWEEP, "-o", "ray.json", *RAY) == found
    assert again.begun == {}
    assert "drop 20%" in run(*SWEEP, "-o", "ray.json").stdout


def test_a_point_that_fails_is_listed_and_measured_the_next_time(here, install):
    install(fate=lambda p, _: "killed" if bits_of(p) == 3 else "done")
    found = run_json(*SWEEP, "-o", "sweep.json", *RAY, "--tries", 3, code=1)
    assert found["failed"] == [
        {
            "settings": {"method": "nearest", "bits": 3},
            "goal": None,
            "error": "WorkerCrashedError: the worker died unexpectedly",
            "tries": 3,
        }
    ]
    assert len(found["points"]) == 10
    text = run(*SWEEP, "-o", "sweep.json", *RAY, code=1).stdout
    assert "failed after 2 tries: nearest bits=3: WorkerCrashedError: the worker died" in text
    one = install()
    found = run_json(*SWEEP, "-o", "sweep.json", *RAY)
    assert sum(one.begun.values()) == 1
    assert found["points"][0]["settings"] == {"method": "nearest", "bits": 3}


@pytest.mark.slow
def test_a_cluster_that_goes_away_keeps_what_is_finished(here, install):
    install(order=itemgetter(0), fate=lambda p, _: "gone" if p.settings.get("slope") else "done")
    error = run(*SWEEP, "-o", "sweep.json", *RAY, code=1).stderr
    assert "6 of 11 points had arrived. 'sweep.json' keeps 6 finished points." in error
    assert "Run the same command again" in error
    assert len(json.loads((here / "sweep.json").read_text())["points"]) == 6
    rest = install()
    found = run_json(*SWEEP, "-o", "sweep.json", *RAY)
    assert sum(rest.begun.values()) == 5
    assert plain(found) == plain(run_json(*SWEEP, "-o", "serial.json"))


def test_a_worker_with_another_network_or_version(here, install, monkeypatch, state):
    fake = install()
    sweep = ("sweep", *NETWORK, *QUICK, "--methods", "nearest", "--bits", "3", "-o", "sweep.json")
    real = fake.put

    def put(work):
        save_file({k: v + 1 for k, v in state.items()}, here / "net.safetensors")
        return real(work)

    fake.put = put
    failed = run_json(*sweep, *RAY, code=1)["failed"]
    assert "is another network on this worker" in failed[0]["error"]

    def put_newer(work):
        monkeypatch.setattr(points, "__version__", "9.9")
        return real(work)

    fake.put = put_newer
    failed = run_json(*sweep[:-1], "new.json", *RAY, code=1)["failed"]
    assert (
        f"started by fewbits {fewbits.__version__}, but this worker has 9.9" in failed[0]["error"]
    )


def test_sensitivity_on_a_cluster(here, install):
    command = ("sensitivity", *NETWORK, *QUICK, "--bits", "2,4")
    serial = run_json(*command)
    install()
    assert run_json(*command, *RAY) == serial
    install(fate=lambda name, _: "killed" if name == "3" else "done")
    found = run_json(*command, *RAY, code=1)
    assert found["rows"] == [row for row in serial["rows"] if row["name"] != "3.weight"]
    assert found["failed"] == {"3": "WorkerCrashedError: the worker died unexpectedly"}
    assert "1 of 3 layers could not be measured" in run(*command, *RAY, code=1).stdout
    install(fate=lambda name, _: "gone")
    assert "0 of 3 points had arrived" in run(*command, *RAY, code=1).stderr


def test_sensitivity_in_python(digits_net, digits, install):
    batches = list(digits[0][:192].split(64))
    serial = fewbits.sensitivity(digits_net, "gpfq", batches, effort="fast")
    install(order=itemgetter(0))
    assert fewbits.sensitivity(digits_net, "gpfq", batches, effort="fast", engine="ray") == serial
    fake = install(fate=lambda name, _: "gone" if name == "linear" else "done")
    fake.order = lambda pending: min(pending, key=lambda one: b"linear" in one.request)
    with pytest.raises(ClusterError) as caught:
        fewbits.sensitivity(digits_net, "gpfq", batches, effort="fast", engine=Ray(cpus=1))
    assert caught.value.finished == [row for row in serial if row.name != "linear.weight"]


def test_what_is_refused(here):
    sweep = ("sweep", *NETWORK, "--methods", "sloped", "-o", "sweep.json")
    assert "serial, ray" in run(*sweep, "--engine", "rya", code=2).stderr
    assert "--engine ray" in run(*sweep, "--ray-address", "auto", code=2).stderr
    assert "--engine ray" in run(*sweep, "--tries", 3, code=2).stderr
    both = ("--max-drop", "1%", "--split", "selection")
    assert "leave out" in run(*sweep, *both, code=2).stderr
    assert "points of accuracy" in run(*sweep, "--max-drop", "1%,x", code=2).stderr


def test_threads_of_a_serial_point(here, monkeypatch):
    seen = []
    real = Sloped.encode

    def encode(self, layer):
        seen.append(torch.get_num_threads())
        return real(self, layer)

    monkeypatch.setattr(Sloped, "encode", encode)
    before = torch.get_num_threads()
    point = ("--methods", "sloped", "--slopes", "1e-3", "-o", "sweep.json")
    run("sweep", *NETWORK, *QUICK, *point, "--cpus", 2)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before
