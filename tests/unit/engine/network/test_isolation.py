"""Settings of the process and of a pass come back as they were; copies count as memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbits.engine.lockstep.lockstep import run_lockstep
from fewbits.engine.network.isolation import fast_path_off, isolated_pass


def test_the_fast_path_is_off_until_its_last_user_has_gone():
    enabled = torch.backends.mha.get_fastpath_enabled
    assert enabled()
    first, second = fast_path_off(), fast_path_off()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not enabled()
    second.__exit__(None, None, None)
    assert enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with fast_path_off():
            assert not enabled()
        assert not enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_an_isolated_pass_draws_by_its_seed_and_leaves_batch_and_draws_alone():
    def forward(network: nn.Module, batch: list[Tensor]) -> Tensor:
        return network(batch[0].add_(torch.rand(3)))

    net, batch, state = nn.Identity(), [torch.zeros(3)], torch.get_rng_state()
    first, again, other = (isolated_pass(forward, net, batch, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(batch[0], torch.zeros(3))
    assert torch.equal(torch.get_rng_state(), state)


class Cached(nn.Module):
    """Holds a plain tensor, in place of which every suspended pass gets its own copy."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.cache = {"rope": [torch.zeros(size)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Quiet:
    def observe(self, *call: object) -> None: ...

    def complete(self, module: str) -> None: ...


def test_copies_of_plain_tensors_count_as_live_bytes():
    def run(size: int, room: int):
        batches = [torch.zeros(1, 2)] * 3
        nets = Cached(size).eval(), Cached(size).eval()
        return run_lockstep(
            *nets, ["layer"], batches, lambda n, x: n(x), Quiet(), max_live_bytes=room
        )

    assert run(1000, 1 << 30).pair_bytes - run(0, 1 << 30).pair_bytes == 2 * 4000
    assert run(0, 10_000).live_batches == 3
    assert run(1000, 10_000).live_batches == 1
