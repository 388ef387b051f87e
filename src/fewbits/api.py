"""The public functions compress, plan and load; the work is done in ``compression``.

Imports are deferred until they are needed: loading a file imports no methods and no recipes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from .engine.network.batches import Forward
from .engine.network.distributed import shared_work
from .engine.network.padding import Mask
from .errors import ConfigError, require
from .progress import Progress, silent

if TYPE_CHECKING:
    from .compression.budget import Evaluate
    from .compression.deltas.states import Base
    from .compression.result import BaseWeights, CompressionResult
    from .compression.start_levels import Start
    from .methods import Activations, AnyMethod
    from .recipe.plan import Plan
    from .recipe.recipe import Recipe
    from .recipe.training_config import Training

    HowToCompress: TypeAlias = AnyMethod | Recipe | Mapping[str, Any] | str | PathLike[str]

__all__ = ["compress", "load", "load_tensor", "plan"]


@torch.inference_mode(False)  # copies of the network are made inside, and may need gradients
def compress(
    model: nn.Module,
    method: HowToCompress,
    calibration: Iterable[Any] | Tensor | None = None,
    forward: Forward | None = None,
    *,
    mask: Mask | None = None,
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
    weights: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    base: Base | None = None,
    start: Start | None = None,
    max_live_bytes: int = 1 << 30,
    share: bool = True,
    progress: Progress = silent,
) -> CompressionResult:
    """Compress a trained network; ``model`` itself is not changed.

    Memory: the network, one byte per weight for its codes, and another copy of its weights as
    they become quantized; with ``weights``, none of these, but only what is worked on: the largest
    layer (8 bytes for each weight and those of the checkpoint; if the method needs inputs, 4 more,
    and 24 N^2 bytes for the moments of N inputs), the activations of suspended passes (up to
    ``max_live_bytes``) and about 700 MB.

    With one of ``target_bytes``, ``target_bits`` and ``max_drop``, fewbits searches for the slope
    (the squared output error that one bit is worth), uses it in every rule whose method has one,
    and returns the best file within the budget; where no method has one, likewise for the number of
    levels. Each evaluation costs one compression and one
    encoding.

    Args:
        model: any ``nn.Module``. fewbits works on copies in eval mode and does not trace.
        method: a method for all weights, such as ``fewbits.GPFQ(bits=4)``, or a
            :class:`Recipe`; also a name ("gpfq", "hemp", "smallest", "lossless") or the path of a
            recipe file. "lossless" changes no bit of any tensor, and needs no calibration.
        calibration: an iterable of batches (tensors, tuples such as (inputs, labels), dicts), or
            one tensor of stacked samples. Required by methods that use activations. Never pass
            evaluation data.
        forward: ``forward(model, batch)`` runs the network, if the default call does not suit it.
        mask: ``mask(batch)`` returns which tokens of a batch are real: a tensor (samples, tokens),
            zero for padding, several of them (encoder and decoder), or None. Padding is left out of
            the statistics. By default ``attention_mask`` and ``decoder_attention_mask`` of a dict.
        train: labelled training data for methods that train: a ``DataLoader`` or any other
            iterable over batches of (inputs, labels) that can be iterated repeatedly, or a
            ``fewbits.sources`` data source. Needs the extra ``train``.
        training: how to train: a :class:`Training` or a mapping of its settings; by default as
            the recipe says.
        target_bytes: largest size of the file, as a number or "100KB"; met within 1% if sizes
            allow.
        target_bits: the same, in bits of the file per quantized weight.
        max_drop: find the smallest file whose score is at most this far below that of the float
            network: a number, or percentage points of accuracy such as "0.5%".
        evaluate: ``evaluate(model) -> score``, higher is better, on *selection* data: neither the
            calibration data nor the data that results are reported on. Required by ``max_drop``;
            training uses it to choose the epoch; other searches only record it.
        evaluations: largest number of evaluations, including those of a resumed trace.
        time_budget: longest time, in seconds or as "10m". No evaluation starts that is likely to
            end later.
        trace: JSON file that records every evaluation; an existing file is resumed.
        effort: coding effort: "fast", "balanced" or "smallest". Sizes are measured with it, and
            ``save`` uses it.
        threads: threads that encode during a search, as in :meth:`CodedModel.encode`.
        seed: random seed; overrides that of the recipe.
        activations: bits for the inputs of quantized layers, or ``fewbits.Activations(...)``.
            Ranges are calibrated after the weights are quantized. None leaves inputs in float, or
            as the recipe says.
        source: how to build the network again ("module:callable"); stored in the file.
        metadata: whether to store recipe and source in the file, some 50 to 300 bytes.
        weights: safetensors file, index of several, or folder (such as that of a Hugging Face
            model) with the weights of ``model``, which needs none of its own: build it in
            ``with fewbits.empty_weights():``. Weights are read when they are used, and those that
            are quantized go to a temporary folder (the network's size), so the network may be
            larger than memory. Weights have the dtype of the checkpoint.
        resume: folder in which finished layers are kept. A run that was interrupted goes on after
            the last one when called again with the same arguments, and gives the same file. Keep
            the folder until the result is saved, which is read from there.
        base: older weights of the network, as in :func:`fewbits.encode_delta`. The result is then a
            delta: methods quantize the difference of each weight from the base's, on the inputs
            that it has in ``model``, and everything else is told exactly. Load it with
            ``fewbits.load(path, base=...)``. BatchNorm is not folded, and activations cannot be
            quantized.
        start: another compressed network of this architecture, or its file. Weights are rounded to
            its levels: of a grid those in use, with their steps, or its codebook; which of them a
            weight gets is chosen anew. BatchNorm is folded where it is in the start. A method that
            trains begins at the start itself, as in :func:`fewbits.prepare`. Weights that the start
            has in float or in a basis are on new levels, with a warning.
        max_live_bytes: largest number of bytes of activations held by suspended forward passes; at
            layers where they hold more, the batches beyond it are run again.
        share: whether to share the work with the other processes of the ``torch.distributed``
            group that this one is in, if any. All of them must then make the same call, and all get
            the same result; let one save it. False: this process works alone.
        progress: called after every layer, evaluation or training step.

    Returns:
        The compressed network: save it, print its size report and its plan, or read its state
        dict. After a search, ``trace`` lists what was tried; after training, ``history`` has the
        metrics of every epoch.

    Raises:
        ConfigError: an invalid setting or recipe (TargetError: a pattern that matches nothing).
        ModelError: NaN or infinite weights, or a network that cannot be copied or written.
        CalibrationError: calibration data is missing, empty or not finite, or the forward raises.
        BudgetError: no evaluated file is within the budget.
        MissingExtraError: training without the extra ``train``.
        SourceError: ``weights`` cannot be read, or does not fit the network.
        RankError: another process of the group is gone, or failed.
        OSError: ``resume`` or the temporary folder cannot be written, or has no room.
    """
    settings = {
        "forward": forward,
        "mask": mask,
        "budget": {
            "target_bytes": target_bytes,
            "target_bits": target_bits,
            "max_drop": max_drop,
            "evaluate": evaluate,
            "evaluations": evaluations,
            "time_budget": time_budget,
            "trace": trace,
        },
        "effort": effort,
        "threads": threads,
        "seed": seed,
        "activations": activations,
        "training": training,
        "source": source,
        "metadata": metadata,
        "weights": weights,
        "resume": resume,
        "base": None if base is None else _base_of(base),
        "start": start,
        "max_live_bytes": max_live_bytes,
        "progress": progress,
    }
    with shared_work(share):
        return _compressed((model, method, calibration), train, settings)


def _base_of(base: Base) -> BaseWeights:
    from .compression.deltas.result import DeltaBase  # noqa: PLC0415

    return DeltaBase.of(base)


def _compressed(
    what: tuple[nn.Module, HowToCompress, Iterable[Any] | Tensor | None],
    train: Iterable[Any] | None,
    settings: Mapping[str, Any],
) -> CompressionResult:
    from .compression.compress import Request, compress_network  # noqa: PLC0415

    request = Request.of(*what, **settings)
    if request.recipe.training_stage is None:
        if train is not None:
            raise ConfigError(
                "train= is only used by methods that train, and the recipe names none. Leave it "
                "out, or choose such a method: see 'fewbits methods'."
            )
        return compress_network(request)
    from .training.compress import compress_by_training  # noqa: PLC0415

    return compress_by_training(request, train)


def plan(
    model: nn.Module,
    method: HowToCompress,
    *,
    calibrated: bool = True,
    weights: str | PathLike[str] | None = None,
    start: Start | None = None,
) -> Plan:
    """Return what :func:`compress` would do with every tensor, without doing it.

    ``calibrated`` says whether there will be calibration data, as in :meth:`Recipe.of`. Layers that
    calibration does not reach only become known during calibration. ``weights`` is the checkpoint
    of a network without weights, and ``start`` a compressed one, as in :func:`compress`.
    """
    from .compression.compress import plan_request  # noqa: PLC0415

    result, training_method = plan_request(model, method, calibrated, weights, start)
    if training_method is None:
        return result
    from .training.tuner.trained_plan import as_trained  # noqa: PLC0415  (takes seconds)

    return as_trained(model, result, training_method)


@overload
def load(
    path: str | PathLike[str],
    into: None = None,
    *,
    base: Base | None = None,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
) -> dict[str, Tensor]: ...
@overload
def load(
    path: str | PathLike[str],
    into: nn.Module,
    *,
    base: Base | None = None,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
    transform_domain: bool = False,
    lazy: bool = False,
) -> nn.Module: ...
def load(
    path: str | PathLike[str],
    into: nn.Module | None = None,
    *,
    base: Base | None = None,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
    transform_domain: bool = False,
    lazy: bool = False,
) -> dict[str, Tensor] | nn.Module:
    """Read a file into a network, which is returned, or as a plain state dict.

    Tensors are decoded one at a time, in pieces of some 2 million weights, while threads decode the
    next pieces: besides the values themselves this takes some 64 MiB. (A tensor that is stored in
    a basis, or transposed, is one piece, at 16 bytes per weight.)

    Args:
        path: a file written by :meth:`CodedModel.save`.
        into: a network of the same architecture; either all of its values are replaced or none. For
            that, values that replace others wait until all are decoded, up to 1 GiB; a network
            with more is decoded twice. Tensors on the meta device get new memory on the CPU, each
            in the dtype that the network has for it, so building the network takes none. Its
            names may have the prefixes of wrappers (DataParallel, torch.compile). Layer inputs
            that the file quantizes are quantized by forward pre-hooks, bit for bit as when the file
            was written; a file without quantized inputs removes such hooks.
        base: where ``path`` is a delta, the weights since which it tells the changes: a state dict,
            a network, or the path of a ``.fewbits`` file, a checkpoint or a folder with one. See
            :func:`fewbits.apply_delta`, also for what is raised.
        max_decoded_bytes: refuse a file that decodes to more; None sets a limit that every file
            written by this package meets (64 MiB plus 256 times the file). Decoding time is bounded
            in proportion.
        threads: threads that decode in parallel; 0 means one per core. Each takes up to 50 MB. The
            values do not depend on it.
        transform_domain: with ``into``, replace each linear or convolution layer that the file
            stores in a basis by a pair of layers (nn.Sequential) that multiply by the basis and by
            the remaining coefficients. Outputs are the same up to rounding. Other layers are not
            changed.
        lazy: with ``into``, leave weights above 64 KiB in the file, and decode each when it is
            used, and the ones after it on other threads. At most 32 MiB of decoded weights are
            kept, or those of the largest weight. Outputs are the same bit for bit. The weights are
            frozen: they take no gradient, and writing to them is a ModelError. The file is read as
            long as the network lives and must not be changed in place; a CorruptFileError in a
            forward pass says if it was. Casting or moving the network (``model.half()``) and
            ``torch.save`` decode every weight.

    Raises:
        ConfigError: ``transform_domain`` or ``lazy`` without ``into``, or both of them, or one of
            them with ``base``; ``base`` is not the one that the delta was made from.
        CorruptFileError: the file is truncated, damaged, or not a fewbits file.
        ModelError: ``into`` has a different architecture, or tensors on the meta device that are
            not in the file, such as non-persistent buffers; it is left unchanged.
    """
    from .compression.load import read_into, read_lazily_into, read_state_dict  # noqa: PLC0415

    if base is not None:
        require(not lazy, "lazy", "False with base=", lazy)
        require(not transform_domain, "transform_domain", "False with base=", transform_domain)
        from .compression.deltas.loading import read_delta  # noqa: PLC0415

        return read_delta(path, into, base, max_decoded_bytes, threads)
    if lazy and into is not None:
        require(not transform_domain, "transform_domain", "False with lazy=True", transform_domain)
        return read_lazily_into(path, into, max_decoded_bytes, threads)
    if into is None:
        require(not lazy, "lazy", "False without into=", lazy)
        return read_state_dict(path, max_decoded_bytes, threads, transform_domain)
    return read_into(path, into, max_decoded_bytes, threads, transform_domain)


def load_tensor(
    path: str | PathLike[str],
    name: str,
    rows: tuple[int, int] | None = None,
    *,
    max_decoded_bytes: int | None = None,
) -> Tensor:
    """Read one tensor of a file, or some of its rows, by its name or a tied name.

    Reads only the index of the file, the chunks of the tensor, and all steps and small tensors.

    Args:
        path: a file written by :meth:`CodedModel.save`.
        name: name of the tensor.
        rows: (first, stop) along the first dimension, for example of an embedding; None for all
            rows. Rows are coded in chunks of some 2 million weights, of which only the necessary
            ones are read.
        max_decoded_bytes: as for :func:`load`.

    Raises:
        CorruptFileError: the part that was read is damaged; the rest of the file is not checked.
        ConfigError: the file has no tensor ``name`` or no such rows; or rows cannot be read alone,
            because the tensor is small or stored in another layout (a transform, a transposed
            convolution).
    """
    from .compression.load import read_rows  # noqa: PLC0415

    return read_rows(path, name, rows, max_decoded_bytes)
