"""The bit depth of a basis: one for all layers, or chosen for each by distortion + slope * bits.

    python benchmarks/transform_basis_bits.py [--only digits]

ELT of the inputs on the networks of ``transform_retraining.py``, in the paper's form and in the
default form, at that benchmark's slopes. Fixed depths (on the wide CNN only 4, the best one on
digits) beside the choice. ``cost`` is the sum over layers of distortion + slope * bits, which the
choice minimises layer by layer as it sees them; bytes and accuracy are those of the file.

With --only it explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import fewbits
from fewbits.methods import Transform
from images import CACHE
from networks import top1
from record import write
from transform_retraining import NETWORKS

FORMS: dict[str, dict[str, Any]] = {
    "blocks": {"form": "blocks", "feedback": False, "rate": "none"},
    "entropy": {},
}
SLOPES = {"digits": {"blocks": 4.5e-4, "entropy": 1e-3}, "wide": {"blocks": 8e-6, "entropy": 1e-5}}
DEPTHS: dict[str, tuple[int | None, ...]] = {"digits": (2, 3, 4, 5, 6, None), "wide": (4, None)}


def _rows(network: str) -> Iterator[dict[str, Any]]:
    bench = NETWORKS[network](False)
    for form, settings in FORMS.items():
        slope = SLOPES[network][form]
        for depth in DEPTHS[network]:
            started = time.process_time()
            method = Transform(slope=slope, side="row", basis_bits=depth, **settings)
            coded = fewbits.compress(bench.model, method, bench.calibration)
            info = coded.info.values()
            row = {
                "network": network,
                "form": form,
                "slope": slope,
                "basis_bits": depth,
                "cost": sum(layer["distortion"] + slope * layer["bits"] for layer in info),
                "file_bytes": len(coded.without_metadata().data),
                "accuracy": top1(coded.load_into(copy.deepcopy(bench.model)), *bench.test),
                "cpu_seconds": round(time.process_time() - started, 1),
            }
            print(row, flush=True)
            yield row


def main() -> None:
    """Compress with every depth and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=DEPTHS, help="one network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [options.only] if options.only else list(DEPTHS)
    write(
        "transform_basis_bits",
        model="digits-cnn; a CNN of 64 to 256 channels, trained here",
        data="scikit-learn's digits; Fashion-MNIST at 14 x 14 pixels",
        folder=CACHE if options.only else None,
        measured=[row for network in chosen for row in _rows(network)],
    )


if __name__ == "__main__":
    main()
