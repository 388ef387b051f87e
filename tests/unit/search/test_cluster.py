"""Points on a cluster, with a stand-in for ray: order, tries, deaths, and a cluster that goes."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import fewbits
from fake_ray import stand_in
from fewbits.errors import ClusterError, ConfigError, CoverageWarning, MissingExtraError
from fewbits.search import Ray, Serial, as_engine, cluster

REQUESTS = [3, 1, 4, 15, 9, 2]


def square(number):
    if number < 0:
        raise ValueError(f"no root of\n{number}")
    return number * number


def warned(number):
    warnings.warn("few weights", CoverageWarning, stacklevel=1)
    warnings.warn("not ours", UserWarning, stacklevel=1)
    return number


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts a stand-in in the place of ray."""
    with stand_in(monkeypatch) as installed:
        yield installed


def run(work=square, requests=REQUESTS, **settings):
    """Return the results by place, in the order in which they arrived, and what failed."""
    found = {}
    failed = Ray(**settings).run(work, requests, found.__setitem__)
    return found, failed


@pytest.mark.parametrize(
    "order",
    [lambda p: p[0], lambda p: p[-1], lambda p: p[len(p) // 2]],
    ids=["first", "last", "mid"],
)
def test_results_are_those_of_the_serial_engine_in_any_order(install, order):
    fake = install(order=order)
    serial = {}
    assert Serial().run(square, REQUESTS, serial.__setitem__) == []
    found, failed = run(address=fake.address, cpus=2)
    assert (found, failed) == (serial, [])
    assert list(serial) == list(range(6))
    assert fake.calls == [f"init {fake.address}", "shutdown"]
    assert fake.begun_with == [{"num_cpus": 2, "max_retries": 0}]


def test_a_point_that_raises_is_tried_again_and_then_listed(install):
    fake = install()
    found, failed = run(requests=[2, -7, 3], tries=3)
    assert found == {0: 4, 2: 9}
    assert [one.to_dict() for one in failed] == [
        {"place": 1, "error": "ValueError: no root of\n-7", "tries": 3}
    ]
    assert sorted(fake.begun.values()) == [1, 1, 3]


def test_a_killed_worker_costs_one_try(install):
    install(fate=lambda n, tries: "killed" if n == 4 and tries == 1 else "done")
    found, failed = run()
    assert found == {place: n * n for place, n in enumerate(REQUESTS)}
    assert failed == []


def test_a_worker_that_always_dies_is_listed(install):
    install(fate=lambda n, tries: "killed" if n in (4, 2) else "done")
    found, failed = run()
    assert sorted(found) == [0, 1, 3, 4]
    assert [(one.place, one.tries) for one in failed] == [(2, 2), (5, 2)]
    assert failed[0].error == "WorkerCrashedError: the worker died unexpectedly"


def test_a_cluster_that_goes_away_is_an_error_that_keeps_what_arrived(install):
    fake = install(order=lambda p: p[0], fate=lambda n, _: "gone" if n == 15 else "done")
    found = {}
    with pytest.raises(ClusterError, match=r"went away: Local.* 3 of 6 points had arrived"):
        Ray().run(square, REQUESTS, found.__setitem__)
    assert found == {0: 9, 1: 1, 2: 16}
    assert fake.calls == ["init None", "cancel", "cancel", "shutdown"]


def test_a_head_that_falls_silent(install, monkeypatch):
    fake = install(fate=lambda n, _: "lost" if n == 9 else "done")
    monkeypatch.setattr(cluster, "_SILENCE", 0.05)
    fake.head.close()
    with pytest.raises(ClusterError, match=r"head has not answered .* 5 of 6 points had arrived"):
        run()


def test_no_machine_has_the_cpus(install):
    install(fate=lambda n, _: "lost")
    with pytest.raises(ClusterError, match=r"none of its 1 machines has the 8 CPUs .* has 2\)"):
        run(cpus=8, patience=0.05)


def test_a_cluster_that_cannot_be_reached(install):
    fake = install()
    fake.unreachable = ConnectionError("Could not find any running Ray instance\nwith detail")
    with pytest.raises(ClusterError, match=r"no Ray cluster at 'auto': .* 'ray start --head'"):
        run(address="auto")
    fake.unreachable = None
    fake.head.close()
    for address in (fake.address, "head", "head:port", "127.0.0.1:123456"):
        with pytest.raises(ClusterError, match=r"nothing answers there\. Name HOST:PORT"):
            run(address=address)
    assert fake.begun == {}


def test_a_ray_client_is_refused(install, monkeypatch):
    install()
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match="'ray job submit'"):
        run()


def test_a_connection_of_the_caller_stays(install):
    fake = install()
    fake.connected = True
    run()
    assert fake.calls == []
    assert fake.connected


def test_an_error_of_the_caller_ends_the_run(install):
    fake = install()

    def full(place, result):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Ray().run(square, REQUESTS, full)
    assert fake.calls == ["init None", *["cancel"] * 5, "shutdown"]


def test_warnings_of_fewbits_travel(install):
    install()
    with pytest.warns(CoverageWarning, match="few weights") as seen:
        found, _ = run(warned, [1])
    assert (found, len(seen)) == ({0: 1}, 1)


def test_what_cannot_be_sent(install):
    install()
    with pytest.raises(ConfigError, match="the work cannot be sent to other processes: TypeError"):
        run(lambda number: number)


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "fewbits\[ray\]"'):
        run()
    assert run(requests=[]) == ({}, [])


def test_ray_is_not_imported_before_it_is_asked_for():
    code = "import sys, fewbits.search; fewbits.search.Ray(); assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_serial_engine_stops_at_the_first_error():
    found = {}
    with pytest.raises(ValueError, match="no root"):
        Serial().run(square, [2, -1, 3], found.__setitem__)
    assert found == {0: 4}


def test_engines_by_name():
    assert as_engine("serial") == Serial()
    assert as_engine("ray") == Ray()
    assert as_engine(Ray(tries=5)).tries == 5
    with pytest.raises(ConfigError, match=r"serial, ray, .* Did you mean 'ray'\?"):
        as_engine("rays")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Ray, {"cpus": 0}),
        (Ray, {"cpus": 1.5}),
        (Ray, {"tries": 0}),
        (Ray, {"tries": True}),
        (Ray, {"patience": 0}),
        (Ray, {"patience": "long"}),
        (Serial, {"cpus": 0}),
    ],
)
def test_settings_are_checked(kind, settings):
    with pytest.raises(fewbits.ConfigError, match=next(iter(settings))):
        kind(**settings)
