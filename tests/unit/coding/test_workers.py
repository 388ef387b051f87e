"""Worker processes: the same results in order, errors that name the stream, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fewbits.coding import encode_stream, workers
from fewbits.coding.tasks import DecodeTask, EncodeTask, cost, encoding_cost
from fewbits.coding.worker import receive, send
from fewbits.coding.workers import Workers, _raised, _start, usable_workers
from fewbits.errors import ConfigError, CorruptFileError, WorkerError


def matrix(seed, shape=(40, 50)):
    rng = np.random.default_rng(seed)
    return rng.integers(-8, 8, shape).astype(np.int32)


def encoding(symbols):
    return EncodeTask("the index of 'w'", symbols, "balanced")


def decoding(data, codec="static", rows=40, columns=50):
    return DecodeTask("the index of 'w'", codec, data, rows, columns)


def results(pool, tasks):
    return [item.result() for found in pool.run([task] for task in tasks) for item in found]


@pytest.fixture(scope="module")
def pool():
    with Workers(2) as made:
        yield made


def test_encoding_gives_the_same_in_order(pool):
    given = [matrix(seed, (10 * seed + 1, 30)) for seed in range(8)]
    assert results(pool, map(encoding, given)) == [encode_stream(symbols) for symbols in given]


def test_decoding_gives_the_same_in_order(pool):
    given = [matrix(seed) for seed in range(8)]
    given[3] = np.full((40, 50), 70_000, np.int32)
    given[5][0, 0] = -300
    coded = [encode_stream(symbols, "fast") for symbols in given]
    found = results(pool, [decoding(data, name) for name, data in coded])
    for a, b in zip(found, given, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [a.itemsize for a in found] == [1, 1, 1, 4, 1, 2, 1, 1]


def test_matrices_larger_than_a_pipe_go_both_ways(pool):
    wide = np.arange(2_000_000, dtype=np.int32).reshape(1000, 2000) * 7
    wide = [wide, wide + 1, wide + 2, wide + 3]
    coded = results(pool, [EncodeTask("w", symbols, "fast") for symbols in wide])
    found = results(pool, [decoding(data, name, 1000, 2000) for name, data in coded])
    assert all(np.array_equal(a, b) for a, b in zip(found, wide, strict=True))


def test_a_matrix_without_symbols_is_no_exception(pool):
    empty = np.zeros((0, 3), np.int32)
    assert results(pool, [encoding(empty)]) == [("constant", b"")]
    assert results(pool, [decoding(b"", "constant", 0, 3)])[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (decoding(b""), CorruptFileError),
        (decoding(b"\0" * 9), CorruptFileError),
        (decoding(b"\0", "nonsense"), ConfigError),
        (encoding(np.array([[2**31]], np.int64)), ValueError),
    ],
)
def test_an_error_comes_back_as_it_was(pool, task, kind):
    with pytest.raises(kind) as there:
        results(pool, [task])
    with pytest.raises(kind) as here:
        task.run()
    assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))


def test_an_error_ends_neither_the_worker_nor_the_order(pool):
    good, bad = encode_stream(matrix(1), "fast"), decoding(b"\0" * 9)
    found = [item for items in pool.run([[bad], [decoding(good[1], good[0])]]) for item in items]
    with pytest.raises(CorruptFileError):
        found[0].result()
    np.testing.assert_array_equal(found[1].result(), matrix(1))
    assert all(process.poll() is None for process in pool._all)


def test_an_unknown_error_keeps_its_name():
    error = _raised("PanicException", "index out of bounds")
    assert (type(error).__name__, str(error)) == ("PanicException", "index out of bounds")


def test_a_killed_worker_is_named_with_its_stream_and_replaced():
    name, data = encode_stream(matrix(1), "fast")
    task = decoding(data, name)
    with Workers(2) as pool:
        results(pool, [task])
        pool._all[0].kill()
        pool._all[0].wait()
        with pytest.raises(WorkerError, match=r"the index of 'w'.*exit code -9.*workers=1"):
            results(pool, [task])
        np.testing.assert_array_equal(results(pool, [task])[0], matrix(1))


def test_only_as_many_workers_start_as_there_are_tasks():
    with Workers(8) as pool:
        assert pool._all == []
        results(pool, [encoding(matrix(1)), encoding(matrix(2))])
        assert 1 <= len(pool._all) <= 2


def test_without_workers_nothing_starts_and_nothing_is_done_ahead():
    begun = []

    def jobs():
        for seed in range(3):
            begun.append(seed)
            yield [encoding(matrix(seed))]

    with Workers(1) as pool:
        for done, found in enumerate(pool.run(jobs()), 1):
            assert len(begun) == done
            assert found[0].result() == encode_stream(matrix(done - 1))
        assert pool._all == []


def test_what_is_begun_ahead_is_bounded(pool, monkeypatch):
    monkeypatch.setattr(workers, "AHEAD", 5 * 2000)
    begun = []

    def jobs():
        for seed in range(20):
            begun.append(seed)
            yield [encoding(matrix(seed))]

    for done, _ in enumerate(pool.run(jobs()), 1):
        assert len(begun) <= done + 5
    assert len(begun) == 20


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("failure", [None, KeyboardInterrupt, CorruptFileError])
def test_nothing_is_left_behind(failure):
    before, threads = descriptors(), threading.active_count()

    def use():
        with Workers(3) as pool:
            results(pool, map(encoding, map(matrix, range(6))))
            begun = pool.run([[encoding(matrix(1, (2000, 500)))]] * 4)  # still at it when it ends
            next(begun)
            if failure:
                raise failure
        return pool

    if failure:
        with pytest.raises(failure):
            use()
    else:
        pool = use()
        assert len(pool._all) == 3
        assert all(process.returncode is not None for process in pool._all)
        with pytest.raises((WorkerError, RuntimeError)):
            results(pool, [encoding(matrix(1))])
    assert (descriptors(), threading.active_count()) == (before, threads)


SCRIPT = """
import signal, sys, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from fewbits.coding.tasks import EncodeTask
from fewbits.coding.workers import Workers
pool = Workers(2)
symbols = np.random.default_rng(0).integers(-8, 8, (2000, 2000)).astype(np.int32)
tasks = [[EncodeTask("w", symbols, "fast")]] * 2
with pool:
    list(found[0].result() for found in pool.run(tasks))
    print(*(process.pid for process in pool._all), flush=True)
    tasks = [[EncodeTask("w", symbols, sys.argv[1])]] * 100
    for found in pool.run(tasks):
        found[0].result()
"""  # no guard for __main__


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(how):
    # When killed, it cannot kill them: they end with the task at hand, here a short one.
    effort = "smallest" if how == signal.SIGINT else "fast"
    command = [sys.executable, "-c", SCRIPT, effort]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as script:
        pids = script.stdout.readline().split()
        assert len(pids) == 2
        assert all(map(alive, pids))
        time.sleep(0.2)
        script.send_signal(how)
        errors = script.communicate(timeout=60)[1]
    if how == signal.SIGINT:
        assert errors.count("Traceback") == 1
        assert not any(map(alive, pids))
    until = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_worker_imports_no_torch():
    code = "import sys, fewbits.coding.worker; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_worker_answers_in_bytes_and_ends_with_its_input():
    process = _start()
    send(process.stdin, [b"decode", b"constant", b"\x04", b"2", b"3"])
    assert receive(process.stdout) == [b"ok", b"|i1", b"2", b"3", b"\2" * 6]
    send(process.stdin, [b"import os"])
    assert receive(process.stdout)[:2] == [b"error", b"KeyError"]
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()


def test_no_interpreter_is_said_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    with Workers(2) as pool, pytest.raises(WorkerError, match="Use workers=1"):
        results(pool, [encoding(matrix(1))])


def test_how_many_workers():
    assert usable_workers(1, 10**12) == 1
    assert usable_workers(3, 0) == 3
    assert usable_workers(0, 0) == 1
    assert usable_workers(0, 10**12) == len(os.sched_getaffinity(0))
    for wrong in (-1, 257, 1.5, "2", None):
        with pytest.raises(ConfigError, match="workers must be an integer"):
            usable_workers(wrong, 0)


def test_what_is_slow_costs_more():
    assert cost(4, 1000) == cost(9, 1000) > cost(2, 1000) == cost(255, 1000) == 1000
    assert encoding_cost("smallest", 10) == encoding_cost("balanced", 10) > encoding_cost("fast", 9)
