"""Names that differ by what wraps a network: DataParallel, torch.compile, a trainer's module.

Names of a file, or of a checkpoint, and those of a network are paired as they are where they are
equal, or become so without the wrappers before all names of a side. The others are paired without
the components that wrappers add anywhere, where that leaves no doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...coded import ActivationGrid, ActivationSite, Contents, site_name

__all__ = ["fit_modules", "fit_names", "fit_sites", "fitted"]

# DataParallel and DistributedDataParallel, torch.compile, trainers, FSDP, checkpointed activations
_GIVEN = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_WRAPPERS = frozenset(("module", "model")) | _GIVEN  # people have children of these two names too
_DEEPEST = 8  # components that are taken for wrappers at the start of a name


@dataclass(frozen=True)
class Lead:
    """What stands before all names of one side, and before those of the other in its place.

    Attributes:
        theirs: "module." of a file from a DataParallel network; "" for nothing.
        ours: the same of the network.
        count: names that are equal so.
    """

    theirs: str = ""
    ours: str = ""
    count: int = 0

    def moved(self, name: str) -> str:
        """Return the name that one of theirs has among ours."""
        inside = name.startswith(self.theirs)
        return self.ours + name.removeprefix(self.theirs) if inside else name

    def before(self, module: str) -> str | None:
        """Return the name that a module of ours has among theirs; None for a wrapper of ours."""
        path = f"{module}." if module else ""
        inside = path.startswith(self.ours)
        return (self.theirs + path.removeprefix(self.ours)).removesuffix(".") if inside else None


def lead_of(theirs: Iterable[str], ours: Iterable[str]) -> Lead:
    """Return the wrappers before the names of each side with which most names are equal.

    Of several, the shortest. Where no names are equal, all that stand before the names of a side.
    """
    left, right = _without_leads(theirs), _without_leads(ours)
    pairs = [
        Lead(p, q, len(mine.keys() & yours.keys()))
        for p, mine in left.items()
        for q, yours in right.items()
    ]
    best = max(pairs, key=lambda lead: (lead.count, -len(lead.theirs) - len(lead.ours)))
    return best if best.count else Lead(max(left, key=len), max(right, key=len))


def fit_names(
    theirs: Iterable[str], ours: Iterable[str], *, renamed: bool = False
) -> dict[str, str]:
    """Return, for each of ``theirs`` that has one, its name among ``ours``, the network's tensors.

    ``module.0.weight`` and ``0.weight`` are one name, whichever side has the wrapper, and
    ``features._orig_mod.0.bias`` and ``features.0.bias``; but not where two names of a side would
    become one. What stands before the names comes first: a network may have children of its own
    called ``model`` and ``module``.

    Args:
        theirs: names of a file or a checkpoint.
        ours: names of the network.
        renamed: whether the network knows further names, which it renames when it loads: these too
            lose, or get, what stands before the others.
    """
    left, right = dict.fromkeys(theirs), dict.fromkeys(ours)
    found: dict[str, str] = {}
    lead = lead_of(left, right)
    ways: list[tuple[Callable[[str], str], Callable[[str], str]]] = [
        (partial(_after, lead.theirs), partial(_after, lead.ours)),
        (partial(_tensor, words=_GIVEN), partial(_tensor, words=_GIVEN)),
        (_tensor, _tensor),
    ]
    for mine, yours in ways:
        taken = set(found.values())
        rest = _unique(mine, (name for name in left if name not in found))
        free = _unique(yours, (name for name in right if name not in taken))
        found |= {rest[bare]: free[bare] for bare in rest if bare in free}
    if renamed:
        taken = set(found.values())
        others = {name: lead.moved(name) for name in left if name not in found}
        found |= {name: new for name, new in others.items() if new not in taken}
    return found


def fit_sites(
    sites: Mapping[str, ActivationGrid], network: nn.Module, tensors: Iterable[str] = ()
) -> dict[str, ActivationGrid]:
    """Return grids by the names that their places have in ``network``; unknown ones as they are.

    ``tensors``: names of the tensors beside them, which tell what stands before all names.
    """
    lead = _lead_in(network, tensors)
    modules = dict(network.named_modules(remove_duplicate=False))
    theirs = {before: name for name in modules if (before := lead.before(name)) is not None}
    inner = {_bare(name): name for name in modules}  # of a wrapper and what it wraps, the latter
    found = {}
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
        found[site] = grid
    return found


def fit_modules(
    facts: Mapping[str, Any], network: nn.Module, tensors: Iterable[str] = ()
) -> dict[str, Any]:
    """Return facts of modules by the names that these have in ``network``.

    ``tensors``: names of the tensors beside them, which tell what stands before all names.
    """
    lead = _lead_in(network, tensors)
    known = _unique(_bare, facts)
    found = {}
    for name, _ in network.named_modules(remove_duplicate=False):
        before = lead.before(name)
        theirs = before if before in facts else known.get(_bare(name))
        if theirs is not None:
            found[name] = facts[theirs]
    return found


def fitted(contents: Contents, network: nn.Module) -> Contents:
    """Return ``contents`` under the names of ``network``; what does not fit keeps its name."""
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


def _lead_in(network: nn.Module, tensors: Iterable[str]) -> Lead:
    lead = lead_of(tensors, network.state_dict())
    return lead if lead.count else Lead()


def _without_leads(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the wrappers that stand before all names, with the names without them.

    Names of one component do not count, and stay: they are counters beside what is wrapped.
    """
    names = list(names)
    leads = [set(_wrappers(name)) for name in names if "." in name]
    shared = set.intersection(*leads) if leads else set()
    return {lead: _unique(partial(_after, lead), names) for lead in ("", *sorted(shared))}


def _wrappers(name: str) -> Iterator[str]:
    """Yield the wrappers at the start of the name of a tensor: "module.", "module.model.", ..."""
    lead = ""
    for part in name.split(".", _DEEPEST)[:-1]:
        if part not in _WRAPPERS:
            return
        lead = f"{lead}{part}."
        yield lead


def _after(lead: str, name: str) -> str:
    return name.removeprefix(lead)


def _unique(bare: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    """Return bare name to name, where only one has it."""
    pairs = [(bare(name), name) for name in names]
    counts = Counter(short for short, _ in pairs)
    return {short: name for short, name in pairs if counts[short] == 1}


def _tensor(name: str, words: frozenset[str] = _WRAPPERS) -> str:
    path, dot, leaf = name.rpartition(".")
    path = _bare(path, words)
    return f"{path}.{leaf}" if dot and path else leaf


def _bare(path: str, words: frozenset[str] = _WRAPPERS) -> str:
    return ".".join(part for part in path.split(".") if part not in words)
