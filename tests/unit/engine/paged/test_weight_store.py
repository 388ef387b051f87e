"""The store of decoded weights: order, bound, failures and threads, with weights that are names."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from fewbits.engine.paged import weight_store
from fewbits.engine.paged.weight_store import WeightSpec, WeightStore

CPU = torch.device("cpu")


def spec(name, size=100):
    return WeightSpec(name, (size,), (1,), torch.float32, CPU)


LETTERS = [spec(name) for name in "abcdefghijklmnopqrst"]


class Decoder:
    """Makes a weight of ones, and notes its name and the number of threads it may use."""

    def __init__(self) -> None:
        self.names, self.threads, self.failing = [], {}, set()

    def __call__(self, wanted, threads):
        self.names.append(wanted.name)
        self.threads[wanted.name] = threads
        if wanted.name in self.failing:
            raise OSError(f"no {wanted.name}")
        return torch.ones(wanted.shape)


def store_of(decoder, threads=2, specs=LETTERS, limit=2000):
    store = WeightStore(decoder, threads, lambda: None)
    store.expect(specs)
    store.limit = limit
    return store


def test_the_next_weights_are_decoded_ahead_in_the_order_of_use():
    decoder = Decoder()
    store = store_of(decoder)
    turned = LETTERS[::-1]  # not as in the file
    for _ in range(3):
        for wanted in turned:
            store.get(wanted)
            assert store.held_bytes <= store.limit
    store.get(turned[0])
    assert set(store._held) == set(turned[:5])  # itself and two for each thread
    assert len(decoder.names) < 4 * len(LETTERS)  # again only what was guessed in the first pass


def test_the_order_of_the_file_is_the_first_guess():
    store = store_of(Decoder())
    store.get(LETTERS[3])
    assert list(store._held) == LETTERS[3:8]
    store.get(LETTERS[-1])
    assert set(store._held) == {LETTERS[-1], *LETTERS[:4]}  # and then from the beginning


def test_one_thread_decodes_nothing_ahead_and_keeps_what_was_used_last():
    decoder = Decoder()
    store = store_of(decoder, threads=1, limit=800)
    for wanted in (*LETTERS[:3], LETTERS[1], LETTERS[3], LETTERS[1]):
        store.get(wanted)
    assert decoder.names == ["a", "b", "c", "d"]
    assert set(store._held) == {LETTERS[1], LETTERS[3]}
    assert store.held_bytes == 800


def test_the_bound_is_that_of_the_largest_weight_at_least(monkeypatch):
    monkeypatch.setattr(weight_store, "HELD_BYTES", 1000)
    decoder = Decoder()
    store = WeightStore(decoder, 3, lambda: None)
    specs = [spec("small"), spec("large", 1000), spec("last")]
    store.expect(specs)
    assert store.limit == 4000
    for _ in range(2):
        for wanted in specs:
            assert store.get(wanted).shape == wanted.shape
            assert store.held_bytes <= 4000
    assert decoder.threads == {"small": 1, "large": 3, "last": 1}


def test_a_failure_is_raised_where_the_weight_is_needed_and_tried_again():
    decoder = Decoder()
    decoder.failing = {"b", "c"}
    store = store_of(decoder)
    store.get(LETTERS[0])  # those after it fail elsewhere
    for wanted in LETTERS[1:3]:
        with pytest.raises(OSError, match=f"no {wanted.name}"):
            store.get(wanted)
    decoder.failing = set()
    assert store.get(LETTERS[1]).sum() == 100
    assert store.get(LETTERS[2]).sum() == 100


def test_threads_that_need_one_weight_decode_it_once():
    begun, names = threading.Barrier(4), []

    def decode(wanted, threads):
        names.append(wanted.name)
        return torch.ones(wanted.shape)

    store, found = store_of(decode, threads=1), []

    def work():
        begun.wait()
        found.append(store.get(LETTERS[0]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert names == ["a"]
    assert all(values is found[0] for values in found)


def test_what_a_store_uses_is_closed_with_it():
    closed = []
    store = WeightStore(Decoder(), 2, lambda: closed.append(True))
    store.expect(LETTERS)
    store.get(LETTERS[0])
    assert not closed
    del store
    gc.collect()
    assert closed


def test_values_are_converted_to_the_network_s():
    values = torch.arange(6.0).reshape(2, 3)
    same = WeightSpec("w", (2, 3), (3, 1), torch.float32, CPU)
    assert same.convert(values) is values
    turned = WeightSpec("w", (2, 3), (1, 2), torch.bfloat16, CPU)
    assert turned.nbytes == 12
    converted = turned.convert(values)
    assert converted.stride() == (1, 2)
    assert torch.equal(converted, values.bfloat16())
