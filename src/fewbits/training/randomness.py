"""Random numbers as a function of the position: no generator state has to be kept or restored.

Every step seeds the generators anew from (seed, epoch, step, process). A run that is resumed at a
step therefore draws what an unbroken one draws there, in the network (dropout), in a person's own
loader, and in augmentation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..ops.seeds import seed_at

__all__ = ["generator_at", "kept_random_state", "seed_everything_at"]


def seed_everything_at(*position: int) -> None:
    """Seed the global generators of torch (all devices in use), numpy and Python."""
    seed = seed_at(*position)
    # torch.manual_seed would note a stack trace for every kind of device that is not in use.
    torch.default_generator.manual_seed(seed)
    in_use: Callable[[], bool] = torch.cuda.is_initialized
    if in_use():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    # What people's own transforms use is this old global one.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def generator_at(*position: int) -> torch.Generator:
    """Return a generator on the CPU that no other code draws from."""
    return torch.Generator().manual_seed(seed_at(*position))


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Leave the global generators, and that of ``device``, as they were before the block."""
    devices = [device] if device.type == "cuda" else []
    python, old = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(old)  # noqa: NPY002
