"""Which methods go on from which: every pair on scikit-learn's digits, with bytes and accuracy.

    python benchmarks/compositions.py

First a method alone (those that train: with default settings, 6 epochs); then each training method
from its file, 6 epochs; and, from float weights, each method that rounds onto the levels of its
file (``start=``): RDOQ at the bytes of the first file, and again at those of Qronos. A pair that is
refused has the error's words. Accuracy is that of the reloaded file on the 449 test images, and
``output_error`` the squared change of the float network's centred logits there, relative to their
energy; they choose nothing. One seed: read it as what works, not as which pair is best.

``onto_lloyd`` compares onto one codebook, of Lloyd and Max for all weights, at several sizes:
rounding with the slope but without feedback (per weight the least squared distance + price *
bits), Qronos, RDOQ at the bytes of each of these, and RDOQ on its own grid at those of Qronos.
There, and where it has the bytes of Qronos, RDOQ leaves biases as they are, as the others do.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.layers.layer import LayerMatrix, QuantizedMatrix
from fewbits.errors import FewbitsError
from fewbits.methods import Capabilities, PostTrainingMethod
from fewbits.ops.levels.codebook import lloyd_max
from fewbits.ops.rate_distortion.cheapest_levels import level_bits
from fewbits.ops.rate_distortion.entropy_constrained import assign_priced
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
ROUND = ("nearest", "gpfq", "gptq", "qronos")
EPOCHS = 6
COUNTS, PRICES, ROUNDS, EVALUATIONS = (8, 32), (3e-4, 3e-3), 10, 7


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

    def compressed(self, method: Any, **settings: Any) -> fewbits.CodedModel:
        calibration = self.data.batches("calibration", limit=1024, seed=0)
        return fewbits.compress(self.model, method, calibration, **settings)

    def rdoq(
        self, size: int, start: fewbits.CodedModel | None = None, **settings: Any
    ) -> fewbits.CodedModel:
        """Return the float network in at most ``size`` bytes."""
        method = fewbits.RDOQ(**settings)
        tried = self.compressed(replace(method, slope=1 / 3000), start=start)
        size += len(tried.data) - len(tried.without_metadata().data)
        tries: dict[str, Any] = {"target_bytes": size, "evaluations": EVALUATIONS}
        return self.compressed(method, start=start, **tries)

    @torch.no_grad()
    def output_error(self, coded: fewbits.CodedModel) -> float:
        """Return the squared change of the centred logits, relative to their energy."""
        networks = self.model, coded.load_into(copy.deepcopy(self.model))
        logits = [network(self.test[0]) for network in networks]
        wanted, found = (each - each.mean(1, keepdim=True) for each in logits)
        return float((found - wanted).square().sum() / wanted.square().sum())

    def row(
        self, first: str, then: str, work: Callable[[], fewbits.CodedModel]
    ) -> tuple[dict[str, Any], fewbits.CodedModel | None]:
        started = time.process_time()
        try:
            coded = work()
        except FewbitsError as error:
            print(f"{first:14} {then:14} refused: {error}", flush=True)
            return {"first": first, "then": then, "refused": str(error)}, None
        found = {
            "first": first,
            "then": then,
            "file_bytes": len(coded.without_metadata().data),
            "accuracy": top1(coded.load_into(copy.deepcopy(self.model)), *self.test),
            "output_error": self.output_error(coded),
            "cpu_seconds": round(time.process_time() - started, 1),
            "notes": list(coded.notes),
        }
        told = f"{found['file_bytes']:7,} bytes, {found['accuracy']:.2f} %"
        told += f", error {found['output_error']:.5f}"
        print(f"{first:14} {then:14} {told}, {found['cpu_seconds']} CPU s", flush=True)
        return found, coded


@dataclass(frozen=True, kw_only=True)
class Priced(PostTrainingMethod):
    """Rounding with the slope, weight by weight and without data: the control."""

    name: ClassVar[str] = "priced"
    summary: ClassVar[str] = "least squared distance plus price * bits"
    paper: ClassVar[str] = "Chou, Lookabaugh and Gray 1989"
    capabilities: ClassVar[Capabilities] = Capabilities()

    price: float
    levels: tuple[float, ...]

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        levels, top = torch.tensor(self.levels), len(self.levels) - 1
        index = assign_priced(layer.weight, levels, torch.zeros(top + 1), 0.0)
        for _ in range(ROUNDS):
            lengths = level_bits(index.reshape(1, -1), top)[0, top:]
            index = assign_priced(layer.weight, levels, lengths.float(), self.price)
        return QuantizedMatrix(index.to(torch.int32), None, levels=levels)


def _onto_levels(bench: _Bench, name: str, first: fewbits.CodedModel) -> list[dict[str, Any]]:
    """Round the float network onto the levels of another file."""
    rows = []
    for then in ROUND:
        onto = lambda then=then: bench.compressed(then, start=first)  # noqa: E731
        rows.append(bench.row(name, then, onto)[0])
    sizes = {"rdoq": len(first.without_metadata().data)}
    sizes["rdoq as qronos"] = rows[-1].get("file_bytes", sizes["rdoq"])
    for then, size in sizes.items():
        settings = {"bias_rounding": then == "rdoq", "start": first}
        work = lambda size=size, settings=settings: bench.rdoq(size, **settings)  # noqa: E731
        rows.append(bench.row(name, then, work)[0])
    return rows


def _onto_lloyd(bench: _Bench) -> list[dict[str, Any]]:
    """Compare methods at equal bytes onto one codebook for all weights."""
    weights = torch.cat([p.detach().flatten() for p in bench.model.parameters() if p.dim() > 1])
    rows = []
    for count in COUNTS:
        levels = tuple(lloyd_max(weights, count).tolist())
        controls: dict[str, Any] = {
            f"priced at {price:g}": Priced(levels=levels, price=price) for price in PRICES
        }
        controls |= {"qronos": fewbits.Qronos(levels=levels)}
        for name, control in controls.items():
            work = lambda control=control: bench.compressed(control)  # noqa: E731
            row = bench.row(f"lloyd {count}", name, work)[0]
            same = {"levels": levels, "bias_rounding": False}
            ours = lambda row=row, same=same: bench.rdoq(row["file_bytes"], **same)  # noqa: E731
            rows += [row, bench.row(f"lloyd {count}", f"rdoq as {name}", ours)[0]]
        grid = lambda row=row: bench.rdoq(row["file_bytes"], bias_rounding=False)  # noqa: E731
        rows.append(bench.row("grid", f"rdoq as {name}", grid)[0])
    return rows


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
        rows += _onto_levels(bench, name, first)
    write(
        "compositions",
        model="digits-mlp, trained here",
        data="scikit-learn's digits, one seed",
        folder=CACHE if options.quick else None,
        float_accuracy={"test": top1(bench.model, *bench.test)},
        measured=rows,
        onto_lloyd=_onto_lloyd(bench),
    )


if __name__ == "__main__":
    main()
