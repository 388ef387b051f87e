"""The work of ``fewbits demo``: compress one network with every method, evaluate every file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ...api import compress, load, plan
from ...evaluation.metrics import evaluate
from ...files.atomic_write import write
from ...methods import METHODS, AnyMethod, Nearest, from_settings
from ...progress import Progress
from ...report import Comparison
from ...sources import load_data, load_model
from ...sources.demo_network import train_classifier

__all__ = ["candidates", "compare", "one_thread", "train"]

SOURCE, DATA, CHECKPOINT = "builtin:digits-cnn", "digits", "digits-cnn.safetensors"
CALIBRATION = 1024
WIDTHS = (4, 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block on one thread: for a network this small, synchronization costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(folder: Path, seed: int, progress: Progress) -> float:
    """Train the network, write its checkpoint to ``folder`` and return the seconds it took."""
    started = time.perf_counter()
    module = load_model(SOURCE).module
    train_classifier(module, load_data(DATA), seed=seed, progress=progress)
    write(save(module.state_dict()), folder / CHECKPOINT)
    return time.perf_counter() - started


def candidates() -> Iterator[tuple[AnyMethod, int | None]]:
    """Yield every method that needs no training, at each width if it has the setting ``bits``."""
    rounding = [(name, kind) for name, kind in METHODS.items() if not kind.capabilities.trains]
    for width in WIDTHS:
        for name, kind in rounding:
            if "bits" in {field.name for field in fields(kind)}:  # type: ignore[arg-type]
                yield from_settings({"method": name, "bits": width}), width
    for name, kind in rounding:
        if "bits" not in {field.name for field in fields(kind)}:  # type: ignore[arg-type]
            yield from_settings({"method": name}), None


def compare(folder: Path, seed: int, progress: Progress) -> list[Comparison]:
    """Compress the network in ``folder`` with every candidate; the first row is float32."""
    checkpoint = folder / CHECKPOINT
    data, network = load_data(DATA), load_model(SOURCE, checkpoint).module
    calibration = data.batches("calibration", limit=CALIBRATION, seed=seed)
    rows = [_float_row(checkpoint, network, data.batches("test"))]
    for method, width in candidates():
        started = time.perf_counter()
        coded = compress(network, method, calibration, seed=seed, source=SOURCE, progress=progress)
        seconds = time.perf_counter() - started
        path = folder / f"{method.name}{'' if width is None else f'-{width}bit'}.fewbits"
        size, report = coded.save(path), coded.size_report()
        restored = load(path, into=load_model(SOURCE, pretrained=False).module)
        accuracy = evaluate(restored, data.batches("test")).accuracy
        costs = (size, report.bits_per_weight, report.compression_ratio, seconds)
        rows.append(
            Comparison(method.name, width, accuracy, *costs, path.name, coded.coverage.share)
        )
    return rows


def _float_row(checkpoint: Path, network: nn.Module, test: Iterable[Any]) -> Comparison:
    size = checkpoint.stat().st_size
    weights = sum(math.prod(entry.target.shape) for entry in plan(network, Nearest()).entries)
    own = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    accuracy = evaluate(network, test).accuracy
    return Comparison(
        "float32",
        None,
        accuracy,
        size,
        8 * size / weights,
        own / size,
        None,
        checkpoint.name,
    )
