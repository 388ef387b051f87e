"""Match names that differ by wrappers of a network: DataParallel, torch.compile, trainers.

Names of a file or checkpoint are paired with those of a network if they are equal, or become equal
without the wrapper prefix common to all names of a side. The rest are paired without the components
that wrappers add anywhere in a name, if that is unambiguous.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...coded import ActivationGrid, ActivationSite, Contents, site_name

__all__ = ["fit_modules", "fit_names", "fit_sites", "fitted", "joined"]

# DataParallel and DistributedDataParallel, torch.compile, trainers, FSDP, checkpointed activations
_GIVEN = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_WRAPPERS = frozenset(("module", "model")) | _GIVEN  # users have submodules of these two names too
_DEEPEST = 8  # most components at the start of a name taken for wrappers


@dataclass(frozen=True)
class Prefixes:
    """The wrapper prefixes common to all names of each side.

    Attributes:
        theirs: prefix of the file's names, such as "module." of a DataParallel network; or "".
        ours: prefix of the network's names; or "".
        count: number of names that are equal without them.
    """

    theirs: str = ""
    ours: str = ""
    count: int = 0

    def to_ours(self, name: str) -> str:
        """Return the name among ours for one of theirs."""
        inside = name.startswith(self.theirs)
        return self.ours + name.removeprefix(self.theirs) if inside else name

    def to_theirs(self, module: str) -> str | None:
        """Return the name among theirs for a module of ours; None for a wrapper of ours."""
        path = f"{module}." if module else ""
        inside = path.startswith(self.ours)
        return (self.theirs + path.removeprefix(self.ours)).removesuffix(".") if inside else None


def common_prefixes(theirs: Iterable[str], ours: Iterable[str]) -> Prefixes:
    """Return the prefixes without which most names of both sides are equal.

    The shortest of several. If no names are equal, the longest prefix of each side.
    """
    left, right = _without_prefixes(theirs), _without_prefixes(ours)
    pairs = [
        Prefixes(p, q, len(mine.keys() & yours.keys()))
        for p, mine in left.items()
        for q, yours in right.items()
    ]
    best = max(pairs, key=lambda pair: (pair.count, -len(pair.theirs) - len(pair.ours)))
    return best if best.count else Prefixes(max(left, key=len), max(right, key=len))


def fit_names(
    theirs: Iterable[str], ours: Iterable[str], *, renamed: bool = False
) -> dict[str, str]:
    """Map names of ``theirs`` to the names of the same tensors among ``ours``, the network's.

    ``module.0.weight`` and ``0.weight`` match whichever side has the wrapper, and so do
    ``features._orig_mod.0.bias`` and ``features.0.bias``, unless two names of a side would become
    equal. Common prefixes are tried first, since a network may have submodules of its own called
    ``model`` and ``module``.

    Args:
        theirs: names of a file or checkpoint.
        ours: names of the network.
        renamed: whether the network accepts other names, which it renames when loading; these too
            lose or get the common prefix.
    """
    left, right = dict.fromkeys(theirs), dict.fromkeys(ours)
    matched: dict[str, str] = {}
    prefixes = common_prefixes(left, right)
    ways: list[tuple[Callable[[str], str], Callable[[str], str]]] = [
        (partial(_after, prefixes.theirs), partial(_after, prefixes.ours)),
        (partial(_tensor, words=_GIVEN), partial(_tensor, words=_GIVEN)),
        (_tensor, _tensor),
    ]
    for mine, yours in ways:
        taken = set(matched.values())
        rest = _unique(mine, (name for name in left if name not in matched))
        free = _unique(yours, (name for name in right if name not in taken))
        matched |= {rest[bare]: free[bare] for bare in rest if bare in free}
    if renamed:
        taken = set(matched.values())
        others = {name: prefixes.to_ours(name) for name in left if name not in matched}
        matched |= {name: new for name, new in others.items() if new not in taken}
    return matched


def fit_sites(
    sites: Mapping[str, ActivationGrid], network: nn.Module, tensors: Iterable[str] = ()
) -> dict[str, ActivationGrid]:
    """Return the grids under the site names of ``network``; unknown sites keep their names.

    ``tensors``: names of the file's tensors, to find the common prefix.
    """
    prefixes = _prefixes_in(network, tensors)
    modules = dict(network.named_modules(remove_duplicate=False))
    theirs = {before: name for name in modules if (before := prefixes.to_theirs(name)) is not None}
    inner = {_bare(name): name for name in modules}  # of a wrapper and its inside, the inside
    renamed = {}
    for site, grid in sites.items():
        place = ActivationSite.of(site, theirs)
        if place.module in theirs:
            module: str | None = theirs[place.module]
        else:
            place = ActivationSite(site) if _bare(site) in inner else place
            module = inner.get(_bare(place.module))
        if module is not None and module != place.module:
            calls = 1 if place.call is None else 2
            call, output = place.call or 0, place.output
            site = site_name(module, call, calls, output=output, modules=modules)  # noqa: PLW2901
        renamed[site] = grid
    return renamed


def fit_modules(
    facts: Mapping[str, Any], network: nn.Module, tensors: Iterable[str] = ()
) -> dict[str, Any]:
    """Return facts about modules under their names in ``network``.

    ``tensors``: names of the file's tensors, to find the common prefix.
    """
    prefixes = _prefixes_in(network, tensors)
    known = _unique(_bare, facts)
    renamed = {}
    for name, _ in network.named_modules(remove_duplicate=False):
        before = prefixes.to_theirs(name)
        theirs = before if before in facts else known.get(_bare(name))
        if theirs is not None:
            renamed[name] = facts[theirs]
    return renamed


def fitted(contents: Contents, network: nn.Module) -> Contents:
    """Return ``contents`` under the names of ``network``; unmatched names are kept."""
    state = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    theirs = (*contents.tensors, *contents.aliases)
    names = fit_names(theirs, state)
    sites = fit_sites(contents.activations, network, theirs)
    if list(sites) == list(contents.activations) and all(a == b for a, b in names.items()):
        return contents
    return Contents(
        {names.get(name, name): tensor for name, tensor in contents.tensors.items()},
        {names.get(a, a): names.get(b, b) for a, b in contents.aliases.items()},
        sites,
        contents.metadata,
    )


def _prefixes_in(network: nn.Module, tensors: Iterable[str]) -> Prefixes:
    prefixes = common_prefixes(tensors, network.state_dict())
    return prefixes if prefixes.count else Prefixes()


def _without_prefixes(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return each wrapper prefix common to all names, with the names without it.

    Names of one component are ignored and kept: they are counters next to the wrapped network.
    """
    names = list(names)
    prefixes = [set(_wrappers(name)) for name in names if "." in name]
    shared = set.intersection(*prefixes) if prefixes else set()
    return {prefix: _unique(partial(_after, prefix), names) for prefix in ("", *sorted(shared))}


def _wrappers(name: str) -> Iterator[str]:
    """Yield the wrapper prefixes of a tensor's name: "module.", "module.model.", ..."""
    prefix = ""
    for part in name.split(".", _DEEPEST)[:-1]:
        if part not in _WRAPPERS:
            return
        prefix = f"{prefix}{part}."
        yield prefix


def _after(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _unique(bare: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    """Map bare names to names, leaving out ambiguous ones."""
    pairs = [(bare(name), name) for name in names]
    counts = Counter(short for short, _ in pairs)
    return {short: name for short, name in pairs if counts[short] == 1}


def _tensor(name: str, words: frozenset[str] = _WRAPPERS) -> str:
    path, dot, leaf = name.rpartition(".")
    path = _bare(path, words)
    return joined(path, leaf) if dot else leaf


def _bare(path: str, words: frozenset[str] = _WRAPPERS) -> str:
    return ".".join(part for part in path.split(".") if part not in words)


def joined(path: str, leaf: str) -> str:
    """Return the name of a tensor from the path of its module, "" for the network, and its leaf."""
    return f"{path}.{leaf}" if path else leaf
