"""Names that differ by what wraps a network: DataParallel, torch.compile, a trainer's module.

Names of a file, or of a checkpoint, and those of a network are paired as they are where they are
equal. The others are paired without the components that wrappers add, where that leaves no doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..coded import ActivationGrid, Contents, Place, site_name

__all__ = ["fit_modules", "fit_names", "fit_sites", "fitted"]

# DataParallel and DistributedDataParallel, torch.compile, trainers, FSDP, checkpointed activations
_WRAPPERS = frozenset(
    ("module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
)


def fit_names(theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Return, for each of ``theirs`` that has one, its name among ``ours``, the network's tensors.

    ``module.0.weight`` and ``0.weight`` are one name, whichever side has the wrapper, and
    ``features._orig_mod.0.bias`` and ``features.0.bias``; but not where two names of a side would
    become one.
    """
    left, right = dict.fromkeys(theirs), dict.fromkeys(ours)
    found = {name: name for name in left if name in right}
    rest = _unique(_tensor, (name for name in left if name not in found))
    free = _unique(_tensor, (name for name in right if name not in found))
    return found | {rest[bare]: free[bare] for bare in rest if bare in free}


def fit_sites(sites: Mapping[str, ActivationGrid], network: nn.Module) -> dict[str, ActivationGrid]:
    """Return grids by the names that their places have in ``network``; unknown ones as they are."""
    modules = dict(network.named_modules(remove_duplicate=False))
    inner = {_bare(name): name for name in modules}  # of a wrapper and what it wraps, the latter
    found = {}
    for site, grid in sites.items():
        place = Place.of(site, modules)
        if place.module not in modules:
            known = Place(site) if _bare(site) in inner else place
            module = inner.get(_bare(known.module))
            if module is not None:
                calls = 1 if known.call is None else 2
                call, output = known.call or 0, known.output
                site = site_name(module, call, calls, output=output, modules=modules)  # noqa: PLW2901
        found[site] = grid
    return found


def fit_modules(facts: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Return facts of modules by the names that these have in ``network``."""
    known = _unique(_bare, facts)
    found = {}
    for name, _ in network.named_modules(remove_duplicate=False):
        theirs = name if name in facts else known.get(_bare(name))
        if theirs is not None:
            found[name] = facts[theirs]
    return found


def fitted(contents: Contents, network: nn.Module) -> Contents:
    """Return ``contents`` under the names of ``network``; what does not fit keeps its name."""
    state = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    names = fit_names((*contents.tensors, *contents.aliases), state)
    sites = fit_sites(contents.activations, network)
    if list(sites) == list(contents.activations) and all(a == b for a, b in names.items()):
        return contents
    return Contents(
        {names.get(name, name): tensor for name, tensor in contents.tensors.items()},
        {names.get(a, a): names.get(b, b) for a, b in contents.aliases.items()},
        sites,
        contents.metadata,
    )


def _unique(bare: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    """Return bare name to name, where only one has it."""
    pairs = [(bare(name), name) for name in names]
    counts = Counter(short for short, _ in pairs)
    return {short: name for short, name in pairs if counts[short] == 1}


def _tensor(name: str) -> str:
    path, dot, leaf = name.rpartition(".")
    path = _bare(path)
    return f"{path}.{leaf}" if dot and path else leaf


def _bare(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)
