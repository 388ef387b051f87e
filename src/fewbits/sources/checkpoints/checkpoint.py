"""``--weights FILE``: load a safetensors or PyTorch checkpoint into a network, strictly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.network.loading import cast_loss, load_values, plain_targets
from ...engine.network.naming import fit_modules, fit_names
from ...engine.network.shared_memory import storage_problem, ties
from ...errors import ModelError, SourceError
from .state_dicts import first_names, read_checkpoint, read_state_dict
from .unreadable import shard_hint

__all__ = ["COUNTERS", "check_fit", "load_weights", "read_state_dict"]

_FACTORY = "Use the factory with which the checkpoint was made."
COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch norm and of averaged models


def load_weights(model: nn.Module, path: str | Path, *, keep_dtype: bool = False) -> str:
    """Load a checkpoint into ``model`` in place; every tensor must be present and fit.

    With ``keep_dtype``, float32 tensors of the network that are float16 or bfloat16 in the
    checkpoint become so. Returns a note if any did, else "".

    Names may differ by the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``) on either
    side. Two kinds of tensors may be absent: other names of a tied weight, and counters such as
    batch norm's ``num_batches_tracked``, which no result depends on. A network with its own way of
    loading state dicts decides for itself what fits.

    Raises:
        SourceError: the file is unreadable, or tensors are missing, unexpected or misshapen (names
            the first ones). ``model`` is then unchanged.
    """
    checkpoint = read_checkpoint(path)
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    targets = plain_targets(model)
    names = fit_names(checkpoint.tensors, wanted, renamed=targets is None)
    loaded = {names.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    for name, tensor in loaded.items():
        why = storage_problem(tensor, stored=True)
        if why:
            raise SourceError(f"{path}: tensor {name!r} {why}")
    loaded = _fill_optional(loaded, wanted)
    if targets is not None:
        trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        check_fit(loaded, wanted, trained, Path(path), type(model).__name__)
    kept = _keep_halves(targets, loaded) if keep_dtype and targets is not None else []
    versions = fit_modules(checkpoint.versions, model, checkpoint.tensors)
    try:
        load_values(
            model,
            loaded,
            loaded.__getitem__,
            lambda name: name,
            targets=targets,
            versions=versions,
        )
    except ModelError as error:
        hint = shard_hint(Path(path)) if wanted.keys() - loaded.keys() else ""
        raise SourceError(f"{path}: {error} {hint}".rstrip()) from error
    if not kept:
        return ""
    halves = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in kept}))
    return f"{len(kept)} tensors of the network are {halves}, as in {path}"


def _keep_halves(targets: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[torch.dtype]:
    """Give float32 tensors of the network the half dtype of the checkpoint; return the dtypes."""
    kept = []
    for name, tensor in targets.items():
        dtype = loaded[name].dtype if name in loaded else tensor.dtype
        if tensor.dtype == torch.float32 and dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.to(dtype)
            kept.append(dtype)
    return kept


def _fill_optional(loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add tied names and counters that may be absent; drop averaging counters of no module."""
    known = {n: t for n, t in loaded.items() if n in wanted or n.rpartition(".")[2] != "n_averaged"}
    first = ties(wanted)
    present = {first.get(name, name): name for name in known if name in wanted}
    for name, tensor in wanted.items():
        if name in known:
            continue
        owner = present.get(first.get(name, name))
        if owner is not None:
            known[name] = known[owner]
        elif name.endswith(COUNTERS):
            known[name] = tensor
    return known


def check_fit(
    loaded: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    trained: Collection[str],
    path: Path,
    kind: str,
) -> None:
    """Raise a SourceError unless ``loaded`` has just the tensors ``wanted``, in their shapes."""
    both = {name: (loaded[name], tensor) for name, tensor in wanted.items() if name in loaded}
    missing = [name for name in wanted if name not in loaded]
    unexpected = [name for name in loaded if name not in wanted]
    misshapen = [
        f"{name} {tuple(theirs.shape)}, expected {tuple(ours.shape)}"
        for name, (theirs, ours) in both.items()
        if theirs.shape != ours.shape
    ]
    mismatched = [
        f"{name} {theirs.dtype}, expected {ours.dtype}: {why}"
        for name, (theirs, ours) in both.items()
        if (why := cast_loss(theirs.dtype, ours.dtype, trained=name in trained))
    ]
    problems = [
        f"{len(names)} {which} ({first_names(names)})"
        for which, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of an incompatible dtype", mismatched),
        )
        if names
    ]
    if problems:
        hint = shard_hint(path) if missing and path.is_file() else ""
        raise SourceError(
            f"{path}: does not fit {kind} ({len(wanted)} tensors): {'; '.join(problems)}. "
            + (hint or _FACTORY * bool(missing or unexpected or misshapen))
        )
