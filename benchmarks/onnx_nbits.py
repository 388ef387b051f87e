"""4-bit linear layers and embeddings in onnxruntime: MiniLM and SmolLM2, our integers or its own.

    python benchmarks/onnx_nbits.py [--quick] [--networks minilm smollm2] [--layers 6]

Float32 ONNX; our GPTQ (4 bits, group 32; calibrated on the WikiText-2 validation text) written with
``onnx-nbits``, accuracy level 4 and 0; and onnxruntime's own rounding of the float32 graph
(``MatMulNBitsQuantizer`` with its default algorithm, symmetric, block 32, accuracy level 4): of
linear layers and look-ups ("MatMul+Gather"), which is what ours have, and of linear layers alone,
its default.

``error``: of the outputs against the compressed network in PyTorch, norm over norm, and of SmolLM2
in how many percent of places the likeliest token is the same. ``score``:
MiniLM, mean cosine of the embeddings of 200 sentences of the test text to the float network's;
SmolLM2, mean divergence (KL, nats a token) of its predictions from the float network's on 4 windows
of 128 tokens of it, and the perplexity. --layers keeps the first of its 30 layers, for less time:
divergences are then those of the cut network, and its perplexity says nothing. ``latency``: one
thread, calls in turns, one text of so many tokens, no cache of keys and values. --quick takes few
texts and few rounds, and writes to .data/.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor, nn
from torch.nn import functional

import fewbits
from fewbits.exporters import export
from images import CACHE
from onnx_w8a8 import session
from packaged import (
    minilm,
    minilm_sentences,
    smollm2,
    smollm2_tokens,
)
from record import peak_rss_mb, write

GROUP, BITS = 32, 4
KEPT = fewbits.Recipe((fewbits.Rule("*", None),))
OPERATORS = {"rtn, MatMul+Gather": ("MatMul", "Gather"), "rtn, MatMul": ("MatMul",)}

Batch = dict[str, Tensor]


@dataclass
class Case:
    """A network and its texts.

    ``lengths`` of the texts that are timed; ``compared``: a batch on which outputs are compared.
    """

    model: nn.Module
    calibration: list[Batch]
    evaluation: list[Batch]
    compared: Batch
    lengths: tuple[int, ...]


def _minilm(layers: int, *, quick: bool) -> Case:
    evaluation = minilm_sentences("evaluation", 16 if quick else 200)
    calibration = minilm_sentences("calibration", 32 if quick else 128, 0)
    return Case(minilm(), calibration, evaluation, evaluation[0], (16, 128))


def _texts(tokens: Tensor) -> list[Batch]:
    return [{"input_ids": part} for part in tokens.split(1)]


def _smollm2(layers: int, *, quick: bool) -> Case:
    model = smollm2()
    model.config.use_cache = False
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    evaluation = smollm2_tokens("evaluation", 1 if quick else 4, 128)
    calibration = smollm2_tokens("calibration", 2 if quick else 8, 128, 0)
    compared = {"input_ids": smollm2_tokens("evaluation", 2, 64)}
    return Case(model, _texts(calibration), _texts(evaluation), compared, (16, 128))


CASES = {"minilm": _minilm, "smollm2": _smollm2}


def _first(runner: Any, batch: Batch) -> Tensor:
    names = [entry.name for entry in runner.get_inputs()]
    return torch.from_numpy(runner.run(None, {n: batch[n].numpy() for n in names})[0])


def _embeddings(runner: Any, batches: list[Batch]) -> Tensor:
    found = []
    for batch in batches:
        states, mask = _first(runner, batch), batch["attention_mask"][..., None].float()
        found.append(functional.normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(found)


def _predictions(runner: Any, batches: list[Batch]) -> Tensor:
    """Return the logarithms of the probabilities of every next token, (tokens, vocabulary)."""
    return torch.cat([_first(runner, batch)[0, :-1].log_softmax(-1) for batch in batches])


def _scores(case: Case, name: str, runner: Any, wanted: Tensor) -> dict[str, float]:
    if name == "minilm":
        return {"score": float((_embeddings(runner, case.evaluation) * wanted).sum(1).mean())}
    found = _predictions(runner, case.evaluation)
    next_ones = torch.cat([batch["input_ids"][0, 1:] for batch in case.evaluation])
    return {
        "score": float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True)),
        "perplexity": math.exp(float(functional.nll_loss(found, next_ones))),
    }


def _rounded(floats: Path, path: Path, kinds: tuple[str, ...]) -> None:
    """Write onnxruntime's own rounding of a graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool = MatMulNBitsQuantizer(
            onnx.load(floats),  # it changes what it is given
            bits=BITS,
            block_size=GROUP,
            is_symmetric=True,
            accuracy_level=4,
            op_types_to_quantize=kinds,
        )
        tool.process()
    onnx.save(tool.model.model, path)


def _folded(source: Path, path: Path) -> None:
    """Write a graph whose constants are folded: the quantizer takes no transposed initializers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _write_all(case: Case, folder: Path) -> tuple[dict[str, Path], nn.Module, dict[str, Any]]:
    """Write every file; return them, the compressed network, and what was told."""
    began = time.process_time()
    method = fewbits.GPTQ(bits=BITS, group=GROUP)
    coded = fewbits.compress(case.model, method, case.calibration, seed=0)
    seconds = time.process_time() - began
    file_bytes = coded.save(folder / "net.fewbits")
    options: dict[str, Any] = {
        "model": case.model,
        "inputs": case.compared,
        "dynamic_sequence": True,
    }
    paths = {name: folder / f"{place}.onnx" for place, name in enumerate(("float32", *NAMES))}
    export(fewbits.compress(case.model, KEPT), paths["float32"], larger=True, **options)
    for level in (4, 0):
        path = paths[f"ours, level {level}"]
        told = export(
            folder / "net.fewbits", path, to="onnx-nbits", accuracy_level=level, **options
        )
    _folded(paths["float32"], folder / "folded.onnx")
    for name, kinds in OPERATORS.items():
        _rounded(folder / "folded.onnx", paths[name], kinds)
    (folder / "folded.onnx").unlink()
    network = coded.load_into(copy.deepcopy(case.model)).eval()
    extra = {"file_bytes": file_bytes, "gptq_cpu_seconds": seconds, "notes": list(told.notes)}
    return paths, network, extra


NAMES = ("ours, level 4", "ours, level 0", *OPERATORS)


def _latency(case: Case, sessions: dict[str, Any], rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for length in case.lengths:
        ids = torch.randint(1000, 20000, (1, length), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        taken: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(rounds + 2):
            for name, runner in sessions.items():
                began = time.perf_counter()
                _first(runner, batch)
                if number >= 2:
                    taken[name].append(1e3 * (time.perf_counter() - began))
        middle = {name: float(np.median(times)) for name, times in taken.items()}
        found[str(length)] = {
            name: {
                "median_ms": middle[name],
                "least_ms": min(taken[name]),
                "over_float32": middle[name] / middle["float32"],
            }
            for name in sessions
        }
    return found


def _network(name: str, layers: int, *, quick: bool) -> dict[str, Any]:
    case = CASES[name](layers, quick=quick)
    with tempfile.TemporaryDirectory() as place:
        paths, network, extra = _write_all(case, Path(place))
        with torch.no_grad():
            ours = network(**case.compared)[0]
        sessions = {kind: session(path) for kind, path in paths.items()}
        sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    outputs = _embeddings if name == "minilm" else _predictions
    wanted = outputs(sessions["float32"], case.evaluation)
    rows = []
    for kind, runner in sessions.items():
        row: dict[str, Any] = {"form": kind, "bytes": sizes[kind]}
        row |= _scores(case, name, runner, wanted)
        if kind.startswith("ours"):
            theirs = _first(runner, case.compared)
            row["error"] = float((theirs - ours).norm() / ours.norm())
            if name == "smollm2":
                same = theirs.argmax(-1) == ours.argmax(-1)
                row["top1_agreement"] = 100 * float(same.float().mean())
        rows.append(row)
        print(name, row, flush=True)
    latency = _latency(case, sessions, 3 if quick else 15)
    for length, found in latency.items():
        print(name, length, {kind: round(row["over_float32"], 3) for kind, row in found.items()})
    cut = {"layers": layers} if name == "smollm2" else {}
    return {"network": name, **cut, **extra, "summary": rows, "latency": latency}


def main() -> None:
    """Run the networks and write the record, anew after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layers", type=int, default=30, help="of SmolLM2, the first ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(3)
    networks = []
    for name in options.networks:
        networks.append(_network(name, options.layers, quick=options.quick))
        write(
            "onnx_nbits",
            model="all-MiniLM-L6-v2, SmolLM2-135M-Instruct",
            data="WikiText-2: validation text calibrates, test text evaluates",
            folder=CACHE if options.quick else None,
            onnxruntime=onnxruntime.__version__,
            bits=BITS,
            group=GROUP,
            networks=networks,
            peak_rss_mb=peak_rss_mb(),
        )


if __name__ == "__main__":
    main()
