"""What the fuzzers read: every reader of files that others may have written, by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

import fewbits
from fewbits import Recipe
from fewbits.cli.jobs.run_folder import RunRequest
from fewbits.errors import ConfigError, CorruptFileError, SourceError
from fewbits.search.trace import Trace
from fewbits.sources.checkpoints.state_dicts import read_state_dict
from fewbits.training.loop.checkpoint import SCHEMA, RunFolder
from fuzz_genes import Genome, Plain, Sealed, Zipped, files

__all__ = ["TARGETS", "Target", "judge"]

Use: TypeAlias = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        use: reads the file at a path.
        refusals: errors that it documents.
        seeds: sound inputs to begin with.
        name: of the file that is read.
    """

    use: Use
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], list[Genome]]
    name: str = "net.fewbits"
    hidden: tuple[str, ...] = field(default=("MemoryError", "PanicException", "RecursionError"))


def judge(target: Target, data: bytes, folder: Path) -> str:
    """Return "read" or "refused"; raise whatever else happens, hidden in a refusal or not."""
    path = folder / target.name
    path.write_bytes(data)
    try:
        target.use(path)
    except target.refusals as error:
        below: BaseException | None = error
        while below is not None:
            if type(below).__name__ in target.hidden:
                raise AssertionError(f"a refusal hides {type(below).__name__}") from error
            below = below.__cause__
        return "refused"
    return "read"


def _first_tensor(path: Path) -> object:
    return fewbits.load_tensor(path, fewbits.inspect(path).report.rows[0].name)


def _recipe(path: Path) -> object:
    return str(Recipe.from_file(path).to_dict())


def _trace(path: Path) -> object:
    return str(Trace.from_json(path.read_text(encoding="utf-8", errors="replace")))


def _plain(*texts: str) -> Callable[[], list[Genome]]:
    return lambda: [Plain(text.encode()) for text in texts]


RECIPES = (
    "rules:\n- {match: '*', method: nearest, bits: 4}\nseed: 1\n",
    "rules:\n- &a {match: 'a.*', method: gpfq, bits: 3}\n- {<<: *a, match: b}\nactivations: 8\n",
    "rules:\n- match: '*'\n  method: lowbit\ntrain: {epochs: 2}\nraw_dtype: keep\n",
)
TRIAL = {"slope": 0.5, "bytes": 9, "bits_per_weight": 2.0, "score": None, "seconds": 1}
TRACES = tuple(
    json.dumps(
        {"schema": "fewbits.trace/1", "goal": {"bytes": 9}, "key": "k", "reference": 0.5}
        | {"trials": [TRIAL | {"slope": 2.0**k, "chosen": k == 1} for k in range(count)]}
        | {"ended": ""}
    )
    for count in (0, 2)
)
ORDER = {"schema": "fewbits.run/1", "model": "m", "weights": None, "data": "d", "selection": None}
ORDER |= {"start": None, "recipe": {"rules": [{"method": "lowbit"}]}, "out": "o", "folder": "f"}
ORDER |= {"effort": "balanced", "calibration_samples": 9, "evaluate": False, "save_seconds": 3.0}
ORDER |= {"logs": ["csv"], "precision": "float32", "metadata": True}


def _checkpoints() -> list[Genome]:
    return [Sealed(gene) for gene in _pickled({"schema": SCHEMA, "key": "k", "epoch": 1})]


def _weights() -> list[Genome]:
    return _pickled({"epoch": 3, "optimizer": {"lr": 0.1}})


def _pickled(beside: dict[str, Any]) -> list[Genome]:
    state = {**beside, "network": {"w": torch.zeros(3, 4), "b": torch.arange(3)}}
    out = io.BytesIO()
    torch.save(state, out)
    return [Zipped.of(out.getvalue()), Plain(out.getvalue())]


FEWBITS = (CorruptFileError,)
PLAIN = (ConfigError, SourceError)
TARGETS = {
    "inspect": Target(fewbits.inspect, FEWBITS, files),
    "load": Target(fewbits.load, FEWBITS, files),
    "load_tensor": Target(_first_tensor, (CorruptFileError, ConfigError), files),
    "recipe": Target(_recipe, PLAIN, _plain(*RECIPES), "recipe.yaml"),
    "trace": Target(_trace, PLAIN, _plain(*TRACES), "trace.json"),
    "run": Target(
        lambda path: RunRequest.load(path.parent), PLAIN, _plain(json.dumps(ORDER)), "run.json"
    ),
    "checkpoint": Target(RunFolder.read, PLAIN, _checkpoints, "last.pt"),
    "weights": Target(read_state_dict, PLAIN, _weights, "weights.pt"),
}
