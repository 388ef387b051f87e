"""What people call: compress, plan, load. Each does its work in ``compression``.

Nothing heavy is imported before it is needed: loading a file imports no method and no recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from .engine.network.batches import Forward
from .errors import ConfigError
from .progress import Progress, silent

if TYPE_CHECKING:
    from .compression.budget import Evaluate
    from .compression.result import CompressionResult
    from .methods import Activations, AnyMethod
    from .recipe.plan import Plan
    from .recipe.recipe import Recipe
    from .recipe.training_config import Training

    HowToCompress: TypeAlias = AnyMethod | Recipe | Mapping[str, Any] | str | PathLike[str]

__all__ = ["compress", "load", "load_tensor", "plan"]


@torch.inference_mode(False)  # copies of a network that may need gradients are made inside
def compress(
    model: nn.Module,
    method: HowToCompress,
    calibration: Iterable[Any] | Tensor | None = None,
    forward: Forward | None = None,
    *,
    train: Iterable[Any] | None = None,
    training: Training | Mapping[str, Any] | None = None,
    target_bytes: float | str | None = None,
    target_bits: float | None = None,
    max_drop: float | str | None = None,
    evaluate: Evaluate | None = None,
    evaluations: int = 12,
    time_budget: float | str | None = None,
    trace: str | PathLike[str] | None = None,
    effort: str = "balanced",
    threads: int = 0,
    seed: int | None = None,
    activations: Activations | int | None = None,
    source: str = "",
    metadata: bool = True,
    max_live_bytes: int = 1 << 30,
    progress: Progress = silent,
) -> CompressionResult:
    """Compress a trained network; ``model`` itself stays as it is.

    With one of ``target_bytes``, ``target_bits`` and ``max_drop`` fewbits searches for the slope
    (the squared output error that a bit is worth): every rule whose method has one gets the same,
    and the best file within the budget is returned. An evaluation costs one compression and one
    encoding.

    Args:
        model: any ``nn.Module``; works on copies in eval mode, without tracing.
        method: a method for all weights, such as ``fewbits.GPFQ(bits=4)``, or a
            :class:`Recipe`; also by name: "gpfq", "hemp", "smallest", or the path of a recipe file.
        calibration: an iterable of batches (tensors, tuples such as (inputs, labels), dicts), or
            one tensor of stacked samples. Needed by methods that look at activations. Never pass
            evaluation data.
        forward: ``forward(model, batch)`` calls the network where the default would not do.
        train: labelled training data, for methods that train: a ``DataLoader`` or anything else
            that can be iterated again and again over batches of (inputs, labels), or a
            ``fewbits.sources`` data source. Needs the extra ``train``.
        training: how to train: :class:`Training`, or a mapping of its settings; by default what
            the recipe says.
        target_bytes: largest length of the file, as a number or "100KB"; met within 1% where
            sizes allow.
        target_bits: the same, in bits of the file per quantized weight.
        max_drop: the smallest file whose score is at most this far below the float network's: a
            number, or points of accuracy such as "0.5%".
        evaluate: ``evaluate(model) -> score``, higher is better, on *selection* data: neither that
            of calibration nor that which is reported. ``max_drop`` needs it; a training chooses
            its epoch by it; other searches note it.
        evaluations: most evaluations, those of a resumed trace included.
        time_budget: most time, in seconds or as "10m": no evaluation starts that would likely end
            later.
        trace: file that keeps every evaluation, as JSON; an existing one is resumed.
        effort: of encoding: "fast", "balanced" or "smallest"; sizes are measured with it, and
            ``save`` uses it.
        threads: that encode during a search, as in :meth:`CodedModel.encode`.
        seed: random seed; overrides the recipe's.
        activations: bits of the inputs of quantized layers, or ``fewbits.Activations(...)``:
            ranges come from calibration data, after the weights. None leaves them in float, or as
            a recipe says.
        source: how to build the network again ("module:callable"), kept in the file.
        metadata: whether the file holds recipe and source, some 50 to 300 bytes.
        max_live_bytes: most bytes of activations held by suspended forward passes; batches beyond
            it are run again for every layer.
        progress: called after every layer, evaluation or step of a training.

    Returns:
        The compressed network: save it, print its size report and its plan, or read its state
        dict. After a search, its ``trace`` lists what was tried; after a training, its ``history``
        has the figures of every epoch.

    Raises:
        ConfigError: a setting or recipe (TargetError: a pattern that matches nothing).
        ModelError: NaN or infinite weights, or a network that cannot be copied or written.
        CalibrationError: calibration data missing, empty, not finite, or a forward that raises.
        BudgetError: no file that was evaluated is within the budget.
        MissingExtraError: a training without the extra ``train``.
    """
    from .compression.compress import Request, compress_network  # noqa: PLC0415

    request = Request.of(
        model,
        method,
        calibration,
        forward=forward,
        budget={
            "target_bytes": target_bytes,
            "target_bits": target_bits,
            "max_drop": max_drop,
            "evaluate": evaluate,
            "evaluations": evaluations,
            "time_budget": time_budget,
            "trace": trace,
        },
        effort=effort,
        threads=threads,
        seed=seed,
        activations=activations,
        training=training,
        source=source,
        metadata=metadata,
        max_live_bytes=max_live_bytes,
        progress=progress,
    )
    if request.recipe.training_stage is None:
        if train is not None:
            raise ConfigError(
                "train= is for methods that train, and none is named: see 'fewbits methods'."
            )
        return compress_network(request)
    from .training.compress import compress_by_training  # noqa: PLC0415

    return compress_by_training(request, train)


def plan(model: nn.Module, method: HowToCompress, *, calibrated: bool = True) -> Plan:
    """Return what :func:`compress` would do with every tensor, without doing it.

    ``calibrated`` tells whether there will be calibration data, as in :meth:`Recipe.of`. Layers
    that calibration does not reach are known only after it.
    """
    from .compression.compress import planned  # noqa: PLC0415

    made, trained = planned(model, method, calibrated)
    if trained is None:
        return made
    from .training.tuner.trained_plan import as_trained  # noqa: PLC0415  (seconds)

    return as_trained(model, made, trained)


@overload
def load(
    path: str | PathLike[str],
    into: None = None,
    *,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
) -> dict[str, Tensor]: ...
@overload
def load(
    path: str | PathLike[str],
    into: nn.Module,
    *,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
    transform_domain: bool = False,
) -> nn.Module: ...
def load(
    path: str | PathLike[str],
    into: nn.Module | None = None,
    *,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
    transform_domain: bool = False,
) -> dict[str, Tensor] | nn.Module:
    """Read a file: into a network, which is returned, or as a plain state dict.

    Tensors are decoded one at a time: beyond the values themselves it takes some 64 MiB and 16
    bytes for each weight of the largest tensor.

    Args:
        path: a file that :meth:`CodedModel.save` wrote.
        into: a network of the same architecture; its values are replaced, all or none. Its names
            may differ by what wraps a network: DataParallel, torch.compile. Inputs of
            layers that the file quantizes are quantized by forward pre-hooks, bit for bit as when
            it was written; a file without such inputs removes them.
        max_decoded_bytes: refuse a file that decodes to more; None for a limit that fits what this
            package writes (64 MiB and 256 times the file). The time that it may take grows with it.
        threads: that decode side by side; 0 for as many as there are cores. Each takes up to 50
            MB of its own. The values are the same.
        transform_domain: with ``into``, whose layers are changed: a linear or convolution layer
            that the file holds in a basis becomes a pair of layers, nn.Sequential, which multiply
            by the basis and by what remains of the coefficients. Its outputs are the same but for
            rounding. Other layers stay as they are.

    Raises:
        CorruptFileError: the file is truncated, damaged, or not one of ours.
        ModelError: ``into`` has another architecture; it is left unchanged.
    """
    from .compression.load import read_into, read_state_dict  # noqa: PLC0415

    if into is None:
        return read_state_dict(path, max_decoded_bytes, threads, transform_domain)
    return read_into(path, into, max_decoded_bytes, threads, transform_domain)


def load_tensor(
    path: str | PathLike[str],
    name: str,
    rows: tuple[int, int] | None = None,
    *,
    max_decoded_bytes: int | None = None,
) -> Tensor:
    """Read one tensor of a file, or some rows of it, by its name or another that is tied to it.

    Reads the index and what codes that tensor: of the steps and of small tensors, all.

    Args:
        path: a file that :meth:`CodedModel.save` wrote.
        name: of the tensor.
        rows: (first, stop) along its first dimension, as of an embedding; None for all. They are
            coded some 2 million weights at a time, and only what has some of them is read.
        max_decoded_bytes: as for :func:`load`.

    Raises:
        CorruptFileError: what was read is damaged; the rest of the file is not looked at.
        ConfigError: the file has no tensor ``name``, or not these rows; or the tensor is coded in
            another arrangement (a transform, a transposed convolution), or is small.
    """
    from .compression.load import read_rows  # noqa: PLC0415

    return read_rows(path, name, rows, max_decoded_bytes)
