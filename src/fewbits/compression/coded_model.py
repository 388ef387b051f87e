"""A compressed network: what a file holds, and how it is saved and loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from ..coded import CodedTensor, Contents, Coverage, JSONValue, SizeReport, html_table
from ..container import LazyTensors, encode, measure, measure_file, read, write_contents
from ..engine.activations.hooks import check_inputs, load_inputs
from ..engine.layers.pack import to_torch, torch_dtype
from ..engine.network.loading import cast_loss, load_values, plain_targets
from ..engine.network.naming import fit_names, fitted
from ..errors import ConfigError, CoverageWarning, ModelError
from ..files.atomic_write import check_target, replacing

__all__ = ["CodedModel", "load_into", "state_dict", "unwrapped"]

_LISTED = 5


@dataclass(frozen=True, eq=False)
class CodedModel:
    """A compressed network, in memory. :func:`fewbits.compress` returns one.

    Attributes:
        contents: everything the file will hold.
        reasons: name to why a tensor is left in float, where that is known.
        effort: of encoding, where none is named: that of the search, or "balanced".
        notes: what was done besides, or was lost: normalizations absorbed, batches run again.
    """

    _hint: ClassVar[str] = "print(coded.size_report()) lists every tensor"

    contents: Contents
    reasons: Mapping[str, str] = field(default_factory=dict)
    effort: str = "balanced"
    notes: tuple[str, ...] = ()
    _files: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)
    _reports: dict[str, SizeReport] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, max_decoded_bytes: int | None = None, threads: int = 0
    ) -> CodedModel:
        """Read a file that :meth:`save` wrote, with all of its tensors decoded to integers.

        :func:`fewbits.load` fills a network and holds one tensor at a time.

        Args:
            path: the file.
            max_decoded_bytes: refuse a file that decodes to more; see :func:`fewbits.load`.
            threads: that decode side by side; 0 for as many as there are cores.

        Raises:
            CorruptFileError: the file is truncated, damaged, or not one of ours.
        """
        return CodedModel(read(path, max_decoded_bytes=max_decoded_bytes, threads=threads))

    @property
    def tensors(self) -> Mapping[str, CodedTensor]:
        """The coded tensors by name."""
        return self.contents.tensors

    @property
    def data(self) -> bytes:
        """The file's bytes at its own effort; encoded on first use."""
        return self.encode()

    def encode(self, effort: str | None = None, *, threads: int = 0) -> bytes:
        """Return the file's bytes; ``effort`` is "fast", "balanced" or "smallest"; None: its own.

        All hold the same tensors. More effort takes fewer bytes, and longer to write and to read.
        ``threads`` share the work, and give the same bytes: 0 for as many as there are cores.
        The bytes are kept; :meth:`save` does not need them.
        """
        chosen = self.effort if effort is None else effort
        if chosen not in self._files:
            self._files[chosen] = encode(self.contents, chosen, threads)
            self._note(chosen, measure(self._files[chosen]))
        return self._files[chosen]

    def save(
        self, path: str | PathLike[str], effort: str | None = None, *, threads: int = 0
    ) -> int:
        """Write the file atomically, and return its length in bytes; see :meth:`encode`.

        A link is followed; a file that is replaced gives its mode. The file is written as it is
        encoded: it is never held as a whole.

        Raises:
            ConfigError: ``path`` is a device, a FIFO or a socket, which are never replaced.
            OSError: the system cannot write there; an old file stays as it is.
        """
        check_target(path)
        chosen = self.effort if effort is None else effort
        with replacing(path) as file:
            if chosen in self._files:
                file.write(self._files[chosen])
            else:
                write_contents(self.contents, file, chosen, threads)
            report = measure_file(file)
        self._note(chosen, report)
        return report.file_bytes

    def _note(self, effort: str, report: SizeReport) -> None:
        """Keep the report of what was written last, as the last one."""
        self._reports.pop(effort, None)
        self._reports[effort] = report

    def size_report(self, effort: str | None = None) -> SizeReport:
        """Return the itemised size; its rows sum to the file's length exactly.

        That of the file as it was last encoded or saved, unless another ``effort`` is named; it is
        encoded where that has not been done.
        """
        chosen = effort or next(reversed(self._reports), self.effort)
        if chosen not in self._reports:
            self.encode(chosen)
        return replace(self._reports[chosen], reasons=self.reasons)

    @property
    def coverage(self) -> Coverage:
        """How much of the network is quantized, and the largest of the rest."""
        return Coverage.of_tensors(self.tensors, self.reasons)

    @property
    def bits_per_weight(self) -> float:
        """All bits of the file over the number of quantized weights."""
        return self.size_report().bits_per_weight

    @property
    def compression_ratio(self) -> float:
        """Float32 bytes of all parameters and buffers over the file's bytes."""
        return self.size_report().compression_ratio

    def doubt(self, stacklevel: int = 1) -> None:
        """Warn (:class:`CoverageWarning`) where less than half of the network is quantized."""
        if text := self.coverage.warning:
            warnings.warn(text, CoverageWarning, stacklevel=stacklevel + 1)

    def explained(self) -> Self:
        """Return the same network, whose file tells why its largest tensor is left in float.

        Where less than half of it is quantized; the others' files need not.
        """
        found = self.coverage
        if not found.low or not found.reason:
            return self
        why: JSONValue = {found.largest: str(found.reason)}
        metadata = {**self.contents.metadata, "skipped": why}
        return replace(self, contents=replace(self.contents, metadata=metadata))

    def without_metadata(self) -> Self:
        """Return the same network, whose file holds neither recipe nor source: some bytes less.

        Such a file does not tell how it was made; ``fewbits evaluate`` must be told the network.
        """
        return replace(self, contents=replace(self.contents, metadata={}))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the dequantized tensors under every name of the network, tied ones included."""
        return state_dict(self.contents.tensors, self.contents.aliases)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Put the dequantized tensors into ``model``, and return it.

        Inputs that the file quantizes are quantized from then on, by forward pre-hooks.
        """
        contents = self.contents
        if isinstance(model, nn.Module):
            contents = fitted(contents, unwrapped(model))
            check_inputs(unwrapped(model), contents.activations)
        load_into(contents.tensors, contents.aliases, model, "the compressed network")
        load_inputs(unwrapped(model), contents.activations)
        return model

    def __repr__(self) -> str:
        told = f"{self.coverage}; not encoded yet"
        if self.effort in self._files:  # what is long to compute is not computed to be shown
            told = self.size_report().summary
        inputs = len(self.contents.activations)
        also = f", {inputs} quantized inputs" if inputs else ""
        return f"<CodedModel of {len(self.tensors)} tensors{also}: {told}>\n{self._hint}"

    def _repr_html_(self) -> str:
        rows = (
            (name, _kind(tensor), "x".join(map(str, tensor.shape)), self.reasons.get(name, ""))
            for name, tensor in self.tensors.items()
        )
        told = repr(self).partition("\n")[0].strip("<>")
        footer = "; ".join(self.notes)
        return html_table(("tensor", "kind", "shape", "reason"), rows, title=told, footer=footer)


def _kind(tensor: CodedTensor) -> str:
    kind = type(tensor).__name__.removesuffix("Tensor").lower()
    return f"{kind} {tensor.dtype}" if kind == "raw" else kind


def state_dict(tensors: Mapping[str, CodedTensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Dequantize everything: name to tensor. Tied names share one tensor."""
    found = {name: to_torch(tensors[name]) for name in tensors}
    return found | {alias: found[name] for alias, name in aliases.items()}


def load_into(
    tensors: Mapping[str, CodedTensor], aliases: Mapping[str, str], model: nn.Module, where: str
) -> nn.Module:
    """Copy ``tensors`` into the parameters and buffers of ``model``, all or nothing.

    Names may differ by what wraps a network (``module.``, ``_orig_mod.``, ``model.``). Values are
    cast to the network's own dtypes where these differ from the file's. One tensor is decoded at a
    time, unless the network has hooks or methods of its own for loading: then these decide what
    fits, and buffers may get their sizes from the file.

    Raises:
        ModelError: names, shapes or dtypes differ, or the network cannot take values (lists the
            first of each kind), or has one memory for values that differ. ``model`` is unchanged.
        CorruptFileError: a tensor cannot be decoded. ``model`` is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"into must be a torch.nn.Module. Got {type(model).__name__} instead.")
    inner = unwrapped(model)
    targets = plain_targets(inner)
    theirs = {name: name for name in tensors} | dict(aliases)
    names = fit_names(theirs, inner.state_dict(), renamed=targets is None)
    found = {names.get(name, name): name for name in theirs}
    _check_fit(tensors, theirs, found, inner, where, own=targets is None)
    if isinstance(tensors, LazyTensors):
        tensors.check()
    load_values(
        inner,
        found,
        lambda name: to_torch(tensors[theirs[found[name]]]),
        lambda name: theirs[found[name]],
        targets=targets,
        versions=getattr(inner.state_dict(), "_metadata", {}),
    )
    return model


def _check_fit(
    tensors: Mapping[str, CodedTensor],
    theirs: Mapping[str, str],
    found: Mapping[str, str],
    inner: nn.Module,
    where: str,
    *,
    own: bool,
) -> None:
    """Refuse a file of another architecture; ``own``: the network itself decides on sizes."""
    ours = inner.state_dict()
    vain = [name for name, tensor in ours.items() if not _takes_values(tensor)]
    if vain:
        raise ModelError(
            f"{_listed('that hold no values of their own', vain)} (meta or lazy). Build the "
            "network on a real device first."
        )
    if own:
        return
    facts = _facts(tensors)
    trained = {name for name, _ in inner.named_parameters(remove_duplicate=False)}
    both = {name: facts[theirs[other]] for name, other in found.items() if name in ours}
    problems = [
        _listed("not in the network", [o for name, o in found.items() if name not in ours]),
        _listed("missing from the file", [name for name in ours if name not in found]),
        _listed(
            "of another shape",
            [
                f"{name} (file {shape}, network {tuple(ours[name].shape)})"
                for name, (shape, _) in both.items()
                if tuple(ours[name].shape) != shape
            ],
        ),
        _listed(
            "of another kind of values",
            [
                f"{name} (file {dtype}, network {ours[name].dtype}: {why})"
                for name, (_, dtype) in both.items()
                if (why := cast_loss(torch_dtype(dtype), ours[name].dtype, trained=name in trained))
            ],
        ),
    ]
    if any(problems):
        raise ModelError(
            f"{where} belongs to another architecture than {type(inner).__name__}: "
            + "; ".join(filter(None, problems))
            + ". Build the network with the settings it was compressed with."
        )


def _facts(tensors: Mapping[str, CodedTensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each tensor, from the header alone where they are in a file."""
    if isinstance(tensors, LazyTensors):
        return {name: (shape, tensors.dtypes[name]) for name, shape in tensors.shapes.items()}
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside what torch.compile returns, whose names are the real ones."""
    own = [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    children = dict(model.named_children())
    return children["_orig_mod"] if list(children) == ["_orig_mod"] and not own else model


def _takes_values(tensor: object) -> bool:
    if not isinstance(tensor, Tensor):
        return True
    return not (tensor.is_meta or nn.parameter.is_lazy(tensor))


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} tensors {what}: {', '.join(names[:_LISTED])}{more}"
