"""The work of ``fewbits compress --base``: the exact changes since other weights."""

from __future__ import annotations

import time
from pathlib import Path

from ...compression.deltas.delta import encode_delta
from ...files.atomic_write import write
from ...sources import load_model
from ..console.outcome import Outcome

__all__ = ["write_delta"]


def write_delta(
    model: str, weights: Path | None, base: Path, out: Path, *, effort: str, threads: int
) -> Outcome:
    """Write the changes from ``base`` to the network, and say how large they are."""
    network = load_model(model, weights)
    state = network.module.state_dict()
    started = time.perf_counter()
    data = encode_delta(state, base, effort=effort, threads=threads)
    seconds = time.perf_counter() - started
    write(data, out)
    held = {(tensor.data_ptr(), tensor.shape): tensor.nbytes for tensor in state.values()}
    whole = sum(held.values())
    facts = {"file": str(out), "base": str(base), "bytes": len(data), "weights_bytes": whole}
    share = len(data) / max(1, whole)
    line = f"{out}: {len(data):,} bytes, {share:.2%} of the weights, since {base} ({seconds:.1f} s)"
    return Outcome({**facts, "seconds": seconds}, (line,))
