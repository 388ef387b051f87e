"""Which methods go on from which: every pair on scikit-learn's digits, with bytes and accuracy.

    python benchmarks/compositions.py

First a method alone (those that train: with default settings, 6 epochs); then each training method
from its file, 6 epochs; and Qronos, from float weights, onto the values of its file
(``levels=``), where these are at most 256. A pair that is refused has the error's words. Accuracy
is that of the reloaded file on the 449 test images, which choose nothing. One seed: read it as what
works, not as which pair is best.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from fewbits.coded import RawTensor
from fewbits.errors import FewbitsError
from fewbits.recipe.training_config import Training
from fewbits.sources import DataSource, load_data
from fewbits.training.from_recipe import train
from images import CACHE
from networks import digits_network, top1
from record import write

FIRST: dict[str, Any] = {
    "nearest": fewbits.Nearest(),
    "gpfq": fewbits.GPFQ(bits=3),
    "gptq": fewbits.GPTQ(bits=3),
    "qronos": fewbits.Qronos(bits=3),
    "qronos, lloyd": fewbits.Qronos(bits=3, levels="lloyd"),
    "rdoq": "smallest",
    "transform": fewbits.Transform(),
    "hemp": fewbits.HEMP(),
    "pwfn": fewbits.PWFN(),
    "lowbit": fewbits.LowBit(),
}
THEN: dict[str, Any] = {"hemp": fewbits.HEMP(), "lowbit": fewbits.LowBit(), "pwfn": fewbits.PWFN()}
EPOCHS, MOST_VALUES = 6, 256


@dataclass(frozen=True)
class _Bench:
    """The float network, its data, and how to try a method."""

    model: nn.Module
    data: DataSource
    test: tuple[Tensor, Tensor]
    epochs: int

    def trained(self, method: Any, start: fewbits.CodedModel | None = None) -> fewbits.CodedModel:
        recipe = replace(fewbits.Recipe.of(method), train=Training(epochs=self.epochs))
        coded = train(copy.deepcopy(self.model), recipe, self.data, start=start).coded
        if coded is None:
            raise RuntimeError("training in one process gave no network")
        return coded

    def compressed(self, method: Any) -> fewbits.CodedModel:
        calibration = self.data.batches("calibration", limit=1024, seed=0)
        return fewbits.compress(self.model, method, calibration)

    def onto(self, first: fewbits.CodedModel) -> fewbits.CodedModel:
        """Round the float network onto the values of another file."""
        names = {name for name, t in first.tensors.items() if not isinstance(t, RawTensor)}
        state = first.state_dict()
        values = torch.cat([state[name].flatten() for name in sorted(names)]).unique()
        if len(values) > MOST_VALUES:
            raise FewbitsError(f"its weights have {len(values):,} values; levels= takes 256")
        return self.compressed(fewbits.Qronos(levels=tuple(values.tolist())))

    def row(
        self, first: str, then: str, work: Callable[[], fewbits.CodedModel]
    ) -> tuple[dict[str, Any], fewbits.CodedModel | None]:
        started = time.process_time()
        try:
            coded = work()
        except FewbitsError as error:
            print(f"{first:14} {then:8} refused: {error}", flush=True)
            return {"first": first, "then": then, "refused": str(error)}, None
        found = {
            "first": first,
            "then": then,
            "file_bytes": len(coded.without_metadata().data),
            "accuracy": top1(coded.load_into(copy.deepcopy(self.model)), *self.test),
            "cpu_seconds": round(time.process_time() - started, 1),
            "notes": list(coded.notes),
        }
        told = f"{found['file_bytes']:7,} bytes, {found['accuracy']:.2f} %"
        print(f"{first:14} {then:8} {told}, {found['cpu_seconds']} CPU s", flush=True)
        return found, coded


def _bench(quick: bool) -> _Bench:
    model, data = digits_network("digits-mlp", 2 if quick else 16, 0), load_data("digits")
    batches = list(data.batches("test"))
    test = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return _Bench(model.eval(), data, test, 1 if quick else EPOCHS)


def main() -> None:
    """Try every pair and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an epoch each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what a start loses is in the notes
    bench, rows = _bench(options.quick), []
    for name, method in FIRST.items():
        trains = name in THEN
        work = bench.trained if trains else bench.compressed
        row, first = bench.row(name, "", lambda work=work, method=method: work(method))
        rows.append(row)
        if first is None:
            continue
        for then, second in THEN.items():
            again = lambda second=second, first=first: bench.trained(second, first)  # noqa: E731
            rows.append(bench.row(name, then, again)[0])
        rows.append(bench.row(name, "qronos", lambda first=first: bench.onto(first))[0])
    write(
        "compositions",
        model="digits-mlp, trained here",
        data="scikit-learn's digits, one seed",
        folder=CACHE if options.quick else None,
        float_accuracy={"test": top1(bench.model, *bench.test)},
        measured=rows,
    )


if __name__ == "__main__":
    main()
