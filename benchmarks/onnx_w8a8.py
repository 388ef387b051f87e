"""ONNX export of ResNet-20: onnxruntime's top-1 against ours, and its latency against float32.

    python benchmarks/onnx_w8a8.py [--quick]

Post-training, 1,024 training images without labels. Cases: W8A8; the same with the outputs that end
in floats on 8 bits too, in both forms, and with weights of 7 bits; with ranges by percentile; W4A8;
W4A4; W8 and W4 without quantized inputs. All graphs and the float32 one are timed in turns in one
process with one thread, 60 rounds: median, least, and ``spread``, which shows a busy machine. Top-1
is of all 10,000 test images. --quick takes 500 images, few rounds, and writes to .data/.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch

import fewbits
from fewbits.exporters import export
from images import CACHE, cifar10, normalise
from networks import resnet20
from record import blank_copy, write
from resnet20_cifar10 import calibration_batches

__all__ = ["float_graph", "latency", "run", "session"]

CASES: dict[str, tuple[int, fewbits.Activations | None]] = {
    "w8a8": (8, fewbits.Activations(bits=8)),
    "w8a8 outputs": (8, fewbits.Activations(bits=8, outputs=True)),
    "w8a8 outputs, vnni": (8, fewbits.Activations(bits=8, outputs=True)),
    "w7a8 outputs": (7, fewbits.Activations(bits=8, outputs=True)),
    "w8a8 percentile": (8, fewbits.Activations(bits=8, ranges="percentile")),
    "w4a8": (4, fewbits.Activations(bits=8)),
    "w4a4": (4, fewbits.Activations(bits=4)),
    "w8": (8, None),
    "w4": (4, None),
}


def session(path: Path) -> Any:
    """Return onnxruntime's session of a file: defaults, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(runner: Any, x: np.ndarray) -> np.ndarray:
    """Return the first output of a session."""
    found: np.ndarray = runner.run(None, {runner.get_inputs()[0].name: x})[0]
    return found


def float_graph(model: torch.nn.Module, path: Path, example: torch.Tensor) -> None:
    """Write the graph of the float network."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
        made = torch.onnx.export(program, dynamo=True, opset_version=21, verbose=False)
    made.save(str(path))


def latency(sessions: dict[str, Any], x: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of one call with ``x``, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 3):
        for name, runner in sessions.items():
            began = time.perf_counter()
            run(runner, x)
            if number >= 3:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {"median_ms": median(t), "least_ms": min(t), "spread": max(t) / min(t)}
        for name, t in taken.items()
    }


def _case(
    model: torch.nn.Module, name: str, x: torch.Tensor, labels: torch.Tensor, folder: Path
) -> dict[str, Any]:
    bits, activations = CASES[name]
    calibration = calibration_batches(1024, 0)
    coded = fewbits.compress(
        model, fewbits.GPFQ(bits=bits), calibration, activations=activations, seed=0
    )
    size = coded.save(folder / f"{name}.fewbits")
    network = fewbits.load(folder / f"{name}.fewbits", into=blank_copy(model)).eval()
    with torch.inference_mode():
        ours = torch.cat([network(part) for part in x.split(500)]).argmax(1)
    processor = "vnni" if name.endswith("vnni") else "any"
    told = export(coded, folder / f"{name}.onnx", model=model, inputs=x[:2], processor=processor)
    runner = session(folder / f"{name}.onnx")
    theirs = torch.cat([torch.from_numpy(run(runner, p.numpy())) for p in x.split(500)]).argmax(1)
    return {
        "case": name,
        "file_bytes": size,
        "onnx_bytes": told.bytes,
        "accuracy": 100 * float((ours == labels).float().mean()),
        "onnxruntime_accuracy": 100 * float((theirs == labels).float().mean()),
        "same_answer": 100 * float((ours == theirs).float().mean()),
        "notes": list(told.notes),
    }


def main() -> None:
    """Run all cases and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds = (500, 5) if options.quick else (10_000, 60)
    images, labels = cifar10("test")
    x, labels = normalise(images[:count]), torch.as_tensor(labels[:count])
    model = resnet20()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        float_graph(model, folder / "float32.onnx", x[:2])
        rows = []
        for name in CASES:
            rows.append(_case(model, name, x, labels, folder))
            print({k: v for k, v in rows[-1].items() if k != "notes"}, flush=True)
        paths = {"float32": folder / "float32.onnx"}
        paths |= {name: folder / f"{name}.onnx" for name in CASES}
        sessions = {name: session(path) for name, path in paths.items()}
        times = {batch: latency(sessions, x[:batch].numpy(), rounds) for batch in (1, 32)}
        float_bytes = (folder / "float32.onnx").stat().st_size
    for batch, found in times.items():
        for name, row in found.items():
            print(
                f"batch {batch:3} {name:16} {row['median_ms']:8.2f} ms, least {row['least_ms']:.2f}"
            )
    write(
        "onnx_w8a8",
        model="resnet20 (CIFAR-10)",
        data=f"CIFAR-10 test, {count} images",
        folder=CACHE if options.quick else None,
        onnxruntime=onnxruntime.__version__,
        float_onnx_bytes=float_bytes,
        summary=rows,
        latency={str(batch): found for batch, found in times.items()},
    )


if __name__ == "__main__":
    main()
