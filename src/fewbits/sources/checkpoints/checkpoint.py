"""``--weights FILE``: a safetensors or PyTorch checkpoint into a network, strictly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from ...engine.network.loading import load_values, plain_targets, unsuited
from ...engine.network.naming import fit_modules, fit_names
from ...engine.network.shared_memory import hindrance, ties
from ...errors import ModelError, SourceError
from .state_dicts import read_checkpoint, read_state_dict, some
from .unreadable import shard_of

__all__ = ["load_weights", "read_state_dict"]

_FACTORY = "Use the factory the checkpoint was made with."
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch norm and of averaged weights


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into ``model`` in place; every tensor must be there and fit.

    Names may differ by what wraps a network (``module.``, ``_orig_mod.``, ``model.``), on either
    side. Two absences are harmless and allowed: another name of a tied weight, and counters such as
    batch norm's ``num_batches_tracked``, which no result depends on. A network that loads state
    dicts in its own way decides itself what fits.

    Raises:
        SourceError: unreadable file, or the first missing, unexpected or misshapen names.
            ``model`` is unchanged.
    """
    checkpoint = read_checkpoint(path)
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    targets = plain_targets(model)
    names = fit_names(checkpoint.tensors, wanted, renamed=targets is None)
    found = {names.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    for name, tensor in found.items():
        why = hindrance(tensor, stored=True)
        if why:
            raise SourceError(f"{path}: tensor {name!r} {why}")
    found = _completed(found, wanted)
    if targets is not None:
        trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        _check_fit(found, wanted, trained, Path(path), type(model).__name__)
    versions = fit_modules(checkpoint.versions, model, checkpoint.tensors)
    try:
        load_values(
            model,
            found,
            found.__getitem__,
            lambda name: name,
            targets=targets,
            versions=versions,
        )
    except ModelError as error:
        hint = shard_of(Path(path)) if wanted.keys() - found.keys() else ""
        raise SourceError(f"{path}: {error} {hint}".rstrip()) from error


def _completed(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``found`` with what may be absent, and without what is no part of a network."""
    known = {n: t for n, t in found.items() if n in wanted or n.rpartition(".")[2] != "n_averaged"}
    first = ties(wanted)
    there = {first.get(name, name): name for name in known if name in wanted}
    for name, tensor in wanted.items():
        if name in known:
            continue
        owner = there.get(first.get(name, name))
        if owner is not None:
            known[name] = known[owner]
        elif name.endswith(_COUNTERS):
            known[name] = tensor
    return known


def _check_fit(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    trained: Collection[str],
    path: Path,
    kind: str,
) -> None:
    both = {name: (found[name], tensor) for name, tensor in wanted.items() if name in found}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {tuple(theirs.shape)}, expected {tuple(ours.shape)}"
        for name, (theirs, ours) in both.items()
        if theirs.shape != ours.shape
    ]
    unlike = [
        f"{name} {theirs.dtype}, expected {ours.dtype}: {why}"
        for name, (theirs, ours) in both.items()
        if (why := unsuited(theirs.dtype, ours.dtype, trained=name in trained))
    ]
    problems = [
        f"{len(names)} {which} ({some(names)})"
        for which, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of another kind of values", unlike),
        )
        if names
    ]
    if problems:
        hint = shard_of(path) if missing and path.is_file() else ""
        raise SourceError(
            f"{path}: does not fit {kind}, {len(wanted)} tensors: {'; '.join(problems)}. "
            + (hint or _FACTORY * bool(missing or unexpected or misshapen))
        )
