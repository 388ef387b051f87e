"""The bit depth of a basis: one for all layers, or chosen for each by distortion + slope * bits.

    python benchmarks/transform_basis_bits.py

ELT of the inputs on digits-cnn, in the paper's form and in the default one. Fixed depths beside the
choice. ``cost`` is the sum over layers of distortion + slope * bits, which the choice minimises for
each layer as it meets it; bytes and accuracy are those of the file.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import fewbits
from fewbits.methods import Transform
from networks import top1
from record import write
from transform_retraining import NETWORKS

FORMS: dict[str, dict[str, Any]] = {
    "blocks": {"form": "blocks", "feedback": False, "rate": "none"},
    "entropy": {},
}
ALL = (2, 3, 4, 5, 6, None)
CASES: dict[tuple[str, str], tuple[float, tuple[int | None, ...]]] = {
    ("digits", "blocks"): (4.5e-4, ALL),
    ("digits", "entropy"): (1e-3, ALL),
}


def _rows() -> Iterator[dict[str, Any]]:
    for (network, form), (slope, depths) in CASES.items():
        bench = NETWORKS[network](False)
        for depth in depths:
            started = time.process_time()
            method = Transform(slope=slope, side="row", basis_bits=depth, **FORMS[form])
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
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write(
        "transform_basis_bits",
        model="digits-cnn",
        data="scikit-learn's digits, one calibration",
        measured=list(_rows()),
    )


if __name__ == "__main__":
    main()
