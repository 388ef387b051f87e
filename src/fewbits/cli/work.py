"""What ``compress`` does once its options are known: load, calibrate, compress, judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import api
from ..errors import SourceError
from ..evaluate import Evaluation
from ..evaluate import evaluate as judge
from ..model import CodedModel
from ..progress import Progress
from ..recipe import Recipe
from ..sources import DataSource, load_data, load_model

__all__ = ["Job", "remarks", "summary"]


class Job:
    """One network, its data and a recipe."""

    def __init__(
        self, model: str, weights: Path | None, data: str | None, recipe: Recipe, batch_size: int
    ) -> None:
        self.recipe, self.batch_size = recipe, batch_size
        self.model = load_model(model, weights)
        self.data: DataSource | None = None if data is None else load_data(data)

    def plan(self) -> dict[str, Any]:
        """Return what would happen to every tensor."""
        return api.plan(self.model.module, self.recipe).to_dict()

    def compress(self, samples: int, seed: int | None, progress: Progress) -> CodedModel:
        """Compress, calibrating on at most ``samples`` training samples drawn by the seed."""
        batches = None
        if self.data is not None:
            draw = self.recipe.seed if seed is None else seed
            batches = self.data.batches("calibration", self.batch_size, samples, draw)
        return api.compress(
            self.model.module,
            self.recipe,
            batches,
            seed=seed,
            source=self.model.source,
            progress=progress,
        )

    def check_can_judge(self) -> None:
        """Refuse to judge on the samples that calibrate.

        Raises:
            SourceError: the data has no test split of its own.
        """
        if self.data is not None:
            self.data.split("test")
        if self.data is not None and self.data.one_loader:
            raise SourceError(
                f"data {self.data.source!r} is one loader, so that evaluating would use the "
                "calibration samples. Return (train, test), or evaluate on other data afterwards."
            )

    def accuracy(
        self, progress: Progress, file: Path | None = None, workers: int = 1
    ) -> Evaluation | None:
        """Evaluate the network, or what ``file`` holds, on the test split; None without data."""
        if self.data is None:
            return None
        module = self.model.module
        if file is not None:
            module = api.load(file, into=module, workers=workers)
        return judge(module, self.data.batches("test", self.batch_size), progress=progress)


def summary(coded: CodedModel, effort: str = "balanced") -> str:
    """Return the size in one line."""
    report = coded.size_report(effort)
    return (
        f"{report.file_bytes:,} bytes, {report.bits_per_weight:.2f} bits per weight, "
        f"{report.compression_ratio:.1f}x smaller than float32"
    )


def remarks(coded: CodedModel) -> list[str]:
    """Return what deserves a word: stages that ran, and weights with another fate than asked."""
    fates = [(e.target.name, e.reason) for e in coded.plan.entries if e.reason]
    return [*coded.notes, *(f"{name}: {reason}" for name, reason in fates)]
