"""What benchmarks of ``fewbits train`` share: a network and its data, trained and measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from fewbits.recipe.training_config import Training
from fewbits.sources import DataSource, load_data
from fewbits.training.from_recipe import train
from networks import digits_network
from record import Run, measured

__all__ = ["Case", "digits_case"]


@dataclass(frozen=True)
class Case:
    """A network, its data, and the compressed network that training starts from, if any.

    ``title`` begins the method of each run; ``seed`` is that of calibration and training.
    """

    title: str
    seed: int
    model: nn.Module
    data: DataSource
    test: tuple[Tensor, Tensor]
    start: fewbits.CodedModel | None = None

    def trained(
        self, method: Any, training: Training, *, effort: str = "balanced", **settings: Any
    ) -> fewbits.CodedModel:
        """Return what ``fewbits train`` gives; ``settings`` are those of the recipe."""
        recipe = replace(fewbits.Recipe.of(method), train=training, seed=self.seed, **settings)
        model = copy.deepcopy(self.model)
        result = train(model, recipe, self.data, start=self.start, effort=effort)
        assert result.coded is not None  # there is one process
        return result.coded

    def untrained(self, recipe: Any, **options: Any) -> fewbits.CodedModel:
        """Return what ``fewbits.compress`` gives, calibrated with 1,024 samples."""
        calibration = list(self.data.batches("calibration", limit=1024, seed=self.seed))
        return fewbits.compress(self.model, recipe, calibration, seed=self.seed, **options)

    def run(self, part: str, work: Callable[[], fewbits.CodedModel], method: Any) -> Run:
        """Do the work of one part, and measure its file without metadata."""
        wall, cpu = time.perf_counter(), time.process_time()
        coded = work()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        run = measured(
            coded.without_metadata(),
            self.model,
            {"test": self.test},
            seconds=seconds,
            method=f"{self.title} | {part}",
            settings={"method": repr(method), "notes": list(coded.notes)},
            seed=self.seed,
            calibration_images=0,
        )
        accuracy = run.accuracy["test"]
        print(f"{run.method} | {run.seed}: {run.file_bytes:,} bytes, {accuracy:.2f} %", flush=True)
        return run


def digits_case(title: str, network: str, epochs: int, seed: int) -> Case:
    """Return a built-in network trained here on scikit-learn's digits, without a start."""
    torch.set_num_threads(1)
    data = load_data("digits")
    model = digits_network(network, epochs, seed)
    batches = list(data.batches("test"))
    test = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return Case(title, seed, model, data, test)
