"""The trellis on sources whose bound is known: distortion and real bits beside scalar levels.

    python benchmarks/trellis_sources.py [--quick] [--out NAME]

Independent Gaussian and Laplacian values of unit variance, in matrices whose columns are paths of
1,024, 64 or 16 rows. Levels are chosen by distortion plus slope times bits, by RDOQ's own code with
an identity for the metric; bits are those of the bytes of the codec that the effort "smallest"
chooses, head included. The bound is the rate-distortion function: in closed form for the Gaussian,
by Blahut's algorithm for the Laplacian.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewbits.coding import CODECS, Layout, encode_symbols
from fewbits.methods.rate_distortion.rate_problem import RateProblem
from fewbits.methods.rate_distortion.trellis_problem import TrellisProblem
from images import CACHE
from record import write

RATES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
PROBLEMS: dict[str, type[RateProblem]] = {"scalar": RateProblem, "trellis": TrellisProblem}
RATIO = 0.25  # where the search for a step starts, as in RDOQ
Floats = NDArray[np.float64]


def source(name: str, shape: tuple[int, int], seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    if name == "gaussian":
        return rng.standard_normal(shape)
    return rng.laplace(0, 0.5**0.5, shape)


def laplacian_bound() -> tuple[Floats, Floats]:
    """Return distortions, falling, and rates of the Laplacian's rate-distortion function."""
    grid = np.linspace(-9, 9, 721)
    law = np.exp(-(2**0.5) * abs(grid))
    law /= law.sum()
    squares = (grid[:, None] - grid) ** 2
    points = []
    for slope in 2.0 ** np.arange(-1, 9.01, 0.5):
        kernel, output = np.exp(-slope * squares), law.copy()
        for _ in range(400):
            output *= (law / (kernel @ output)) @ kernel
        joint = law[:, None] * kernel * output / (kernel @ output)[:, None]
        distortion = float((joint * squares).sum())
        logs = np.log2((kernel @ output)[:, None])
        rate = float((joint * (-slope * squares / np.log(2) - logs)).sum())
        points.append((distortion, rate))
    found = np.array(sorted(points))
    return found[:, 0], found[:, 1]


def bound(name: str, distortion: float, table: tuple[Floats, Floats]) -> float:
    if name == "gaussian":
        return float(-0.5 * np.log2(distortion))
    return float(np.interp(np.log2(distortion), np.log2(table[0]), table[1]))


def measure(kind: str, values: Floats, slope: float) -> dict[str, Any]:
    """Quantize at a slope, encode, and decode."""
    rows, columns = values.shape
    target = torch.from_numpy(values)[None]
    metric = torch.eye(columns, dtype=torch.float64)[None]
    ones = torch.ones(1, rows, dtype=torch.float64)
    start = time.process_time()
    problem = PROBLEMS[kind].at(target, metric, ones)
    step = problem.search(slope, RATIO, priced=True)
    levels = problem.quantize(step, slope, "static")
    seconds = time.process_time() - start
    distortion = float(problem.distortion(levels[None], step.reshape(1))) / values.size
    index = levels[0].to(torch.int32).numpy()
    codec, data = encode_symbols(index, Layout(rows, columns), "smallest")
    start = time.process_time()
    back = CODECS[codec].decode(data, Layout(rows, columns))
    decoding = time.process_time() - start
    if not np.array_equal(back, index):
        raise RuntimeError("decoding gave other levels")
    return {
        "quantizer": kind,
        "codec": codec,
        "bits": 8 * len(data) / values.size,
        "distortion": distortion,
        "quantize_seconds": round(seconds, 2),
        "decode_msymbols_per_second": round(values.size / 1e6 / decoding, 2),
    }


def compared(name: str, values: Floats, rate: float, table: Any) -> list[dict[str, Any]]:
    """Both quantizers at the slope that the rate has at the bound of a Gaussian."""
    slope = 2 * np.log(2) * 4.0**-rate
    rows = []
    for kind in PROBLEMS:
        row = {"source": name, "rows": len(values), "slope_of_rate": rate}
        row |= measure(kind, values, slope)
        row["bits_above_bound"] = row["bits"] - bound(name, row["distortion"], table)
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the values, two rates")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns, rates = (32, (1.0, 2.0)) if options.quick else (256, RATES)
    table, runs = laplacian_bound(), []
    for name in ("gaussian", "laplacian"):
        values = source(name, (1024, columns), seed=0)
        for rate in rates:
            runs += compared(name, values, rate, table)
    for rows in (64, 16):  # a path begins without a choice of parity
        values = source("gaussian", (rows, 1024 * columns // rows // 4), seed=0)
        for rate in (1.0, 2.0):
            runs += compared("gaussian", values, rate, table)
    write(
        options.out or ("trellis_sources_quick" if options.quick else "trellis_sources"),
        folder=CACHE if options.out or options.quick else None,
        model="none: independent values of unit variance",
        data=f"1,024 x {columns} values; 64 and 16 rows: a quarter of them",
        measured=runs,
    )


if __name__ == "__main__":
    main()
