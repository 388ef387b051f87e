"""The work of ``fewbits sensitivity`` and ``fewbits sweep``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ... import api
from ...coded import Coverage
from ...compression.sensitivity import LayerHarms, at_widths
from ...compression.sensitivity import sensitivity as measure_layers
from ...engine.network.batches import Forward, as_forward
from ...engine.network.threads import thread_count
from ...errors import ClusterError, ConfigError
from ...evaluation.metrics import evaluate as evaluate_network
from ...files.atomic_write import write
from ...files.json_values import read_text
from ...methods import from_settings
from ...progress import Progress, ProgressEvent
from ...report import rate_chart, render
from ...search import Engine, FailedPoint, Sweep
from ...sources import load_data, load_model, with_selection
from ..console.outcome import check_output, note
from ..options.choice import refuse_training
from ..options.usage import as_usage
from .compress import home_of, untrained_notes, with_selection_split
from .points import Bench, Point, Survey, SweepRequest, measure_elsewhere, points_of

__all__ = ["Curve", "layer_rows"]

Source: TypeAlias = tuple[str, Path | None, str]


def layer_rows(
    source: Source,
    quantizer: tuple[str, Sequence[int]],
    *,
    selection: str | None,
    samples: int,
    batch_size: int | None,
    seed: int,
    effort: str,
    forward: Forward | None = None,
    engine: Engine,
    progress: Progress,
) -> tuple[LayerHarms, Coverage, ClusterError | None]:
    """Quantize each layer alone; return the rows and the share of the network that they cover.

    If a cluster fails on the way, the rows are those it finished, and its error comes last.

    ``source`` is (model, checkpoint, data), ``quantizer`` is (method, widths).
    """
    name, widths = quantizer
    refuse_training(name)
    chosen = from_settings({"method": name})
    with as_usage("--bits"):
        at_widths(chosen, widths)
    network, home = load_model(*source[:2]), home_of(*source[:2])
    data = load_data(source[2], home)
    for text in untrained_notes(network):
        note(f"note: {text}")
    score = None
    if selection is not None:
        _, split = with_selection_split(data, selection, home)
        batches = split.batches(batch_size, None, None)

        def score(model: Any) -> float:
            return evaluate_network(model, batches, as_forward(forward)).accuracy

        data = with_selection(data) if selection == data.source else data
    trouble = None
    try:
        rows = measure_layers(
            network.module,
            chosen,
            data.batches("calibration", batch_size, samples, seed),
            widths,
            forward,
            evaluate=score,
            effort=effort,
            seed=seed,
            engine=engine,
            progress=progress,
        )
    except ClusterError as error:
        if not error.finished:
            raise
        rows, trouble = LayerHarms(error.finished), error
    return rows, api.plan(network.module, chosen).coverage, trouble


class Curve:
    """Accuracy over bytes of one network on one data set, point by point."""

    def __init__(self, survey: Survey, request: SweepRequest, engine: Engine) -> None:
        self.survey, self.engine = survey, engine
        self.points = points_of(request)
        self.bench = Bench(survey, self.points)
        for text in self.bench.job.notes:
            note(f"note: {text}")

    def measure(self, out: Path, progress: Progress) -> tuple[Sweep, list[dict[str, Any]]]:
        """Measure the points missing from the file ``out``, which is written after each of them.

        Returns the sweep, and the points that failed with their errors.

        Raises:
            ClusterError: says how to go on.
        """
        sweep = self._open_sweep(out)
        asked = [(point.settings, point.goal) for point in self.points]
        missing = [
            place
            for place, one in enumerate(asked)
            if not sweep.has(*one) and one not in asked[:place]
        ]
        done = len(self.points) - len(missing)
        progress(ProgressEvent("points", done, len(self.points)))

        def keep(place: int, row: Mapping[str, Any]) -> None:
            nonlocal done
            settings, goal = asked[missing[place]]
            sweep.add({"settings": settings, "goal": goal, **row}, asked)
            write(sweep.to_json().encode(), out)
            done += 1
            progress(ProgressEvent("points", done, len(self.points), settings["method"]))

        requests = [self.points[place] for place in missing]
        try:
            with thread_count(self.survey.cpus):
                failed = self.engine.run(self._work(progress), requests, keep)
        except ClusterError as error:
            kept = f"{str(out)!r} keeps {len(sweep.points)} finished points. " if done else ""
            raise ClusterError(f"{error} {kept}Run the same command again to go on.") from error
        return sweep, [self._failure(one, missing) for one in failed]

    def draw(self, points: Mapping[str, Any], path: Path) -> None:
        """Write the plot."""
        write(render(rate_chart(points), path), path)

    def _work(self, progress: Progress) -> Any:
        """Return the function that measures a point: on this bench, or from plain values."""
        if self.engine.here:
            return partial(self.bench.measure, progress=progress)
        checkpoint = self.survey.checkpoint
        shared = replace(
            self.survey,
            checkpoint=None if checkpoint is None else checkpoint.absolute(),
            weights=self.bench.weights,
        )
        return partial(measure_elsewhere, shared)

    def _failure(self, failed: FailedPoint, missing: Sequence[int]) -> dict[str, Any]:
        point: Point = self.points[missing[failed.place]]
        told = {"error": failed.error, "tries": failed.tries}
        return {"settings": point.settings, "goal": point.goal, **told}

    def _open_sweep(self, out: Path) -> Sweep:
        check_output(out, force=True)
        known = self.survey
        key: dict[str, Any] = {"model": known.model, "weights": self.bench.weights}
        key |= {"data": known.data, "split": known.split}
        key |= {"samples": known.samples, "seed": known.seed, "effort": known.effort}
        if not out.exists():
            with thread_count(self.survey.cpus):
                return Sweep(key, self.bench.reference())
        try:
            return Sweep.from_json(read_text(out), key)
        except ConfigError as error:
            raise ConfigError(f"sweep {str(out)!r}: {error}") from None
