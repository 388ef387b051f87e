"""The bit depth of a basis: one for all layers, or chosen for each by distortion + slope * bits.

    python benchmarks/transform_basis_bits.py [--only digits]

ELT of the inputs on networks of ``transform_retraining.py``, in the paper's form and, on digits, in
the default one. Fixed depths (on the wide CNN only 4, the best one on digits) beside the choice.
``cost`` is the sum over layers of distortion + slope * bits, which the choice minimises for each
layer as it meets it; bytes and accuracy are those of the file.

With --only it explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Iterator, Sequence
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
ALL, FEW = (2, 3, 4, 5, 6, None), (4, None)
CASES: dict[tuple[str, str], tuple[float, tuple[int | None, ...]]] = {
    ("digits", "blocks"): (4.5e-4, ALL),
    ("digits", "entropy"): (1e-3, ALL),
    ("wide", "blocks"): (1.73e-6, FEW),
}
NAMES = ("digits", "wide")


def _rows(networks: Sequence[str]) -> Iterator[dict[str, Any]]:
    for (network, form), (slope, depths) in CASES.items():
        if network not in networks:
            continue
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NAMES, help="one network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write(
        "transform_basis_bits",
        model="digits-cnn; a CNN of 64 to 256 channels, trained here",
        data="scikit-learn's digits; Fashion-MNIST at 14 x 14 pixels",
        folder=CACHE if options.only else None,
        measured=list(_rows([options.only] if options.only else NAMES)),
    )


if __name__ == "__main__":
    main()
