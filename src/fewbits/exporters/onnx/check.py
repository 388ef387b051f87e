"""An exported graph in onnxruntime: does it give what the network gives, and how fast?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree

from ...coded import Contents
from ...errors import MissingExtraError, ModelError
from ..base import Checked
from .fake_quant import marked, plain
from .graph import strip
from .trace import traced

__all__ = ["checked"]

_ROUNDS, _LEAST, _SECONDS = 50, 7, 10.0  # calls that are timed: most, least, and for how long


def checked(
    contents: Contents,
    path: Path,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: tuple[bool, bool],
) -> Checked:
    """Compare the file at ``path`` with the network on ``inputs``, and time it against floats.

    Calls that are timed have one sample where the first axis is open (``axes``, as of
    :func:`traced`), else all.
    """
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "the check of an ONNX file") from error
    found = marked(model, contents)
    given = tuple(x.float() if x.dtype in found.dtypes else x for x in inputs)
    with torch.no_grad():
        outputs = found.network(*given)
    graph = traced(plain(model, contents)[0], given, axes, unsigned=False)
    strip(graph)
    floats = graph.SerializeToString()
    sessions = [_session(onnxruntime, source) for source in (str(path), floats)]
    few = tuple(value[:1] for value in given) if axes[0] else given
    theirs = _run(sessions[0], given)
    ours = [x.numpy() for x in _pytree.tree_leaves(outputs) if isinstance(x, Tensor)]
    milliseconds, float_milliseconds = _times(sessions, few)
    return Checked(
        samples=len(given[0]),
        relative_error=_relative(theirs, ours),
        top1_agreement=_agreement(outputs, theirs, ours),
        batch=len(few[0]),
        milliseconds=milliseconds,
        float_milliseconds=float_milliseconds,
        float_bytes=len(floats),
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )


def _session(runtime: Any, source: str | bytes) -> Any:
    try:
        return runtime.InferenceSession(source, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, one for each of its codes
        raise ModelError(f"onnxruntime cannot load the exported graph: {error}") from error


def _run(session: Any, inputs: tuple[Tensor, ...]) -> list[NDArray[Any]]:
    names = [entry.name for entry in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    try:
        made: list[NDArray[Any]] = session.run(None, feeds)
    except Exception as error:  # as above
        raise ModelError(f"onnxruntime cannot run the exported graph: {error}") from error
    return made


def _relative(theirs: list[NDArray[Any]], ours: list[NDArray[Any]]) -> float:
    """Return the norm of all differences over that of all values."""
    pairs = [
        (x.astype(np.float64), y.astype(np.float64)) for x, y in zip(theirs, ours, strict=True)
    ]
    off = sum(float(np.square(x - y).sum()) for x, y in pairs)
    norm = sum(float(np.square(y).sum()) for _, y in pairs)
    return float(np.sqrt(off / norm)) if norm else float(np.sqrt(off))


def _agreement(outputs: Any, theirs: list[NDArray[Any]], ours: list[NDArray[Any]]) -> float | None:
    """Return the percentage of places whose largest entry is the same one; None if not logits."""
    named = isinstance(outputs, Mapping) and next(iter(outputs)) == "logits"
    if not ours or ours[0].shape[-1:] in ((), (1,)) or not (named or ours[0].ndim == 2):
        return None
    return 100 * float((theirs[0].argmax(-1) == ours[0].argmax(-1)).mean())


def _times(sessions: list[Any], inputs: tuple[Tensor, ...]) -> list[float]:
    """Return the median milliseconds of a call of each session, in turns."""
    for session in sessions:
        _run(session, inputs)
    taken: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    for number in range(_ROUNDS):
        if number >= _LEAST and time.perf_counter() - start > _SECONDS:
            break
        for session, times in zip(sessions, taken, strict=True):
            began = time.perf_counter()
            _run(session, inputs)
            times.append(1e3 * (time.perf_counter() - began))
    return [median(times) for times in taken]
