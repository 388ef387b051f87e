"""A compressed network in memory: encode, save, load and report its size."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from ..coded import CodedTensor, Contents, Coverage, JSONValue, SizeReport, html_table
from ..container import LazyTensors, encode, measure, measure_file, read, write_contents
from ..engine.activations.hooks import check_inputs, load_inputs
from ..engine.layers.derived import difference
from ..engine.layers.pack import torch_dtype
from ..engine.network.loading import cast_loss, load_values, plain_targets
from ..engine.network.naming import fit_names, fitted
from ..engine.paged.weight_store import WeightStore
from ..errors import ConfigError, CoverageWarning, ModelError
from ..files.atomic_write import check_target, replacing
from ..pretrained import CONFIG, CodedFolder, files_of, hub_client, upload, write_folder
from .decoding import values_of

if TYPE_CHECKING:
    from ..report import Page

__all__ = ["CodedModel", "load_into", "state_dict", "unwrapped"]

_LISTED = 5


@dataclass(frozen=True, eq=False)
class CodedModel:
    """A compressed network in memory, as returned by :func:`fewbits.compress`.

    Attributes:
        contents: everything the file will hold.
        reasons: why tensors are left in float, by name, if known.
        effort: default coding effort: that of the search, or "balanced".
        notes: what else happened or was lost, such as absorbed BatchNorm layers.
        network_files: how to build the network, as JSON files by name, if it says so itself: those
            that :meth:`save_pretrained` writes.
    """

    _hint: ClassVar[str] = "print(coded.size_report()) lists every tensor"

    contents: Contents
    reasons: Mapping[str, str] = field(default_factory=dict)
    effort: str = "balanced"
    notes: tuple[str, ...] = ()
    network_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    _files: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)
    _reports: dict[str, SizeReport] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, max_decoded_bytes: int | None = None, threads: int = 0
    ) -> CodedModel:
        """Read a file written by :meth:`save` and decode all of its tensors to integers.

        To fill a network, prefer :func:`fewbits.load`, which holds one tensor at a time.

        Args:
            path: the file.
            max_decoded_bytes: refuse a file that decodes to more; see :func:`fewbits.load`.
            threads: threads that decode in parallel; 0 means one per core.

        Raises:
            CorruptFileError: the file is truncated, damaged, or not a fewbits file.
        """
        return CodedModel(read(path, max_decoded_bytes=max_decoded_bytes, threads=threads))

    @property
    def tensors(self) -> Mapping[str, CodedTensor]:
        """The coded tensors by name."""
        return self.contents.tensors

    @property
    def data(self) -> bytes:
        """The bytes of the file at the default effort; encoded on first use."""
        return self.encode()

    def encode(self, effort: str | None = None, *, threads: int = 0) -> bytes:
        """Encode to the bytes of a file, which are kept in memory; :meth:`save` avoids that.

        Args:
            effort: "fast", "balanced" or "smallest"; None for ``self.effort``. The tensors are the
                same. More effort gives fewer bytes and takes longer to write and to read.
            threads: threads that share the work; 0 means one per core. The bytes do not depend on
                it.
        """
        chosen = self.effort if effort is None else effort
        if chosen not in self._files:
            self._files[chosen] = encode(self.contents, chosen, threads)
            self._note(chosen, measure(self._files[chosen]))
        return self._files[chosen]

    def save(
        self, path: str | PathLike[str], effort: str | None = None, *, threads: int = 0
    ) -> int:
        """Write the file atomically and return its length in bytes; see :meth:`encode`.

        Links are followed, and a file that is replaced passes on its mode. The file is written
        while it is encoded and never held in memory as a whole.

        Raises:
            ConfigError: ``path`` is a device, a FIFO or a socket, which are never replaced.
            OSError: the system cannot write there; an existing file is left unchanged.
        """
        check_target(path)
        chosen = self.effort if effort is None else effort
        with replacing(path) as file:
            self._write(file, chosen, threads)
            report = measure_file(file)
        self._note(chosen, report)
        return report.file_bytes

    def save_pretrained(
        self,
        folder: str | PathLike[str],
        model: nn.Module | None = None,
        *,
        processors: Iterable[Any] = (),
        config: Mapping[str, Any] | None = None,
        lazy: bool = False,
        metrics: Mapping[str, float] | None = None,
        base_model: str | None = None,
        effort: str | None = None,
        threads: int = 0,
    ) -> int:
        """Write a folder that ``from_pretrained`` of transformers and of fewbits reads.

        It has ``config.json``, the coded weights in ``fewbits.safetensors``, and a model card,
        ``README.md``. See docs/hugging_face.md.

        Args:
            folder: made if it does not exist.
            model: the network, which is asked for its configuration. Needed only if the one that
                was compressed had none, or if this was read from a file.
            processors: the tokenizer, image processor or feature extractor, which save themselves.
            config: JSON values for ``config.json`` in place of the network's own; for a network
                that is not of transformers, the arguments of its class.
            lazy: whether networks that are loaded from the folder leave their weights there until
                they are used; see :func:`fewbits.load`.
            metrics: measurements for the model card, such as {"perplexity": 12.3}.
            base_model: name on the Hub of the network that was compressed; by default the one that
                its configuration names.
            effort: as for :meth:`encode`.
            threads: as for :meth:`encode`.

        Returns:
            The length of the fewbits file. ``fewbits.safetensors`` has 144 bytes more.

        Raises:
            ConfigError: the configuration is unknown, or the folder has other weights already.
            OSError: the system cannot write there.
        """
        chosen = self.effort if effort is None else effort
        files = {**self.network_files, **({} if model is None else files_of(unwrapped(model)))}
        if config is not None:
            files[CONFIG] = config
        content = CodedFolder(
            files=files,
            write_weights=lambda file: self._write(file, chosen, threads),
            measure=measure_file,
            metadata=self.contents.metadata,
            processors=tuple(processors),
            lazy=lazy,
            metrics=metrics or {},
            base_model=base_model,
        )
        report = write_folder(folder, content)
        self._note(chosen, report)
        return report.file_bytes

    def push_to_hub(
        self,
        repo_id: str,
        model: nn.Module | None = None,
        *,
        token: str | bool | None = None,
        revision: str | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        **settings: Any,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face Hub; return its URL.

        Args:
            repo_id: the repository, such as "someone/network"; made if it does not exist.
            model: as for :meth:`save_pretrained`.
            token: access token; by default the one of ``hf auth login``.
            revision: branch to commit to; by default the main one.
            private: whether a new repository is private.
            commit_message: of the commit.
            **settings: further arguments of :meth:`save_pretrained`.

        Raises:
            MissingExtraError: huggingface_hub is not installed.
        """
        hub_client("push_to_hub")  # before any work
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, model, **settings)
            return upload(
                folder,
                repo_id,
                token=token,
                revision=revision,
                private=private,
                commit_message=commit_message,
            )

    def _write(self, file: BinaryIO, effort: str, threads: int) -> int:
        if effort in self._files:
            return file.write(self._files[effort])
        return write_contents(self.contents, file, effort, threads)

    def _note(self, effort: str, report: SizeReport) -> None:
        """Store a report as the most recent one."""
        self._reports.pop(effort, None)
        self._reports[effort] = report

    def size_report(self, effort: str | None = None) -> SizeReport:
        """Return the itemized size, whose rows add up to the length of the file.

        It is that of the file as last encoded or saved, unless ``effort`` names another one; if
        necessary, the file is encoded first.
        """
        chosen = effort or next(reversed(self._reports), self.effort)
        if chosen not in self._reports:
            self.encode(chosen)
        return replace(self._reports[chosen], reasons=self.reasons)

    @property
    def coverage(self) -> Coverage:
        """The share of the network that is quantized, and the largest tensor that is not."""
        return Coverage.of_tensors(self.tensors, self.reasons)

    @property
    def bits_per_weight(self) -> float:
        """All bits of the file divided by the number of quantized weights."""
        return self.size_report().bits_per_weight

    @property
    def compression_ratio(self) -> float:
        """Bytes of all parameters and buffers, each in its own dtype, over those of the file."""
        return self.size_report().compression_ratio

    def warn_low_coverage(self, stacklevel: int = 1) -> None:
        """Warn (:class:`CoverageWarning`) if less than half of the network is quantized."""
        if text := self.coverage.warning:
            warnings.warn(text, CoverageWarning, stacklevel=stacklevel + 1)

    def with_skip_reason(self) -> Self:
        """Record in the file why the largest tensor is left in float, if coverage is low."""
        coverage = self.coverage
        if not coverage.low or not coverage.reason:
            return self
        why: JSONValue = {coverage.largest: str(coverage.reason)}  # plain text, not a Reason
        metadata = {**self.contents.metadata, "skipped": why}
        return replace(self, contents=replace(self.contents, metadata=metadata))

    def without_metadata(self) -> Self:
        """Return the same network without recipe and source in its file, which saves some bytes.

        Such a file does not say how it was made, and ``fewbits evaluate`` needs ``--model``.
        """
        return replace(self, contents=replace(self.contents, metadata={}))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the dequantized tensors under every name, including tied ones."""
        return state_dict(self.contents.tensors, self.contents.aliases)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Load the dequantized tensors into ``model`` and return it.

        Layer inputs that the file quantizes are quantized from then on, by forward pre-hooks.
        """
        contents = self.contents
        if isinstance(model, nn.Module):
            contents = fitted(contents, unwrapped(model))
            check_inputs(unwrapped(model), contents.activations)
        load_into(contents.tensors, contents.aliases, model, "the compressed network")
        load_inputs(unwrapped(model), contents.activations)
        return model

    def report(self, path: str | PathLike[str], title: str = "") -> int:
        """Write a report for people: one HTML file that needs no network and no scripts.

        It has the bytes of the file and of each of its parts, a histogram of the codes of every
        tensor, what was left in float and why, and, of what was just compressed, the settings, the
        trials of its search and the epochs of its training.

        Args:
            path: the file, which ends in .html; an old one is replaced.
            title: heading; by default the size of the file.

        Returns:
            The length of the report in bytes.

        Raises:
            ConfigError: ``path`` has another ending, or names no file that can be written.
            OSError: the system cannot write there.
        """
        from ..report import check_report  # noqa: PLC0415  (loading a file needs no Rich)

        check_report(path)
        return self.report_page(title).write(path)

    def report_page(self, title: str = "", **about: Any) -> Page:
        """Return what :meth:`report` writes; ``about`` are further arguments of its making."""
        from ..report import coded_report  # noqa: PLC0415

        size, stored = self.size_report(), self.contents.metadata
        facts = {"source": stored.get("source"), **about.pop("facts", {})}
        title = title or f"Compressed to {size.file_bytes:,} bytes by fewbits"
        about = {"notes": self.notes, **about}
        return coded_report(size, self.tensors, title=title, facts=facts, **about)

    def __repr__(self) -> str:
        summary = f"{self.coverage}; not encoded yet"
        if self._reports:  # encoding takes too long for a repr
            summary = self.size_report().summary
        inputs = len(self.contents.activations)
        also = f", {inputs} quantized inputs" if inputs else ""
        return f"<CodedModel of {len(self.tensors)} tensors{also}: {summary}>\n{self._hint}"

    def _repr_html_(self) -> str:
        rows = (
            (name, _kind(tensor), "x".join(map(str, tensor.shape)), self.reasons.get(name, ""))
            for name, tensor in self.tensors.items()
        )
        title = repr(self).partition("\n")[0].strip("<>")
        footer = "; ".join(self.notes)
        return html_table(("tensor", "kind", "shape", "reason"), rows, title=title, footer=footer)


def _kind(tensor: CodedTensor) -> str:
    kind = type(tensor).__name__.removesuffix("Tensor").lower()
    return f"{kind} {tensor.dtype}" if kind == "raw" else kind


def state_dict(
    tensors: Mapping[str, CodedTensor], aliases: Mapping[str, str], threads: int = 1
) -> dict[str, Tensor]:
    """Dequantize all tensors by name, large ones on ``threads``; tied names share one tensor."""
    state = {name: values_of(tensors, name, threads) for name in tensors}
    return state | {alias: state[name] for alias, name in aliases.items()}


def load_into(
    tensors: Mapping[str, CodedTensor],
    aliases: Mapping[str, str],
    model: nn.Module,
    where: str,
    *,
    store: WeightStore | None = None,
    threads: int = 1,
) -> nn.Module:
    """Put ``tensors`` into the parameters and buffers of ``model``, all or nothing.

    Names may differ by the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``). Values
    are cast to the dtypes of the network. Tensors on meta get new memory. One tensor is decoded at
    a time, unless the network has its own loading hooks or methods: these then decide what fits,
    and buffers may take their sizes from the file. With ``store``, large weights become lazy.
    Large tensors are dequantized on ``threads``.

    Raises:
        ModelError: names, shapes or dtypes differ (lists the first of each), the network has
            tensors without values that are not filled, or tensors that share memory have different
            values. ``model`` is unchanged.
        CorruptFileError: a tensor cannot be decoded. ``model`` is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"into must be a torch.nn.Module. Got {type(model).__name__} instead.")
    inner = unwrapped(model)
    targets = plain_targets(inner)
    stored = {name: name for name in tensors} | dict(aliases)
    names = fit_names(stored, inner.state_dict(), renamed=targets is None)
    matches = {names.get(name, name): name for name in stored}
    if targets is None and store is not None:
        raise ModelError(
            f"{type(inner).__name__} has its own way of loading a state dict, which needs all "
            "values at once. Load it without lazy=True."
        )
    _check_fit(tensors, stored, matches, inner, where, custom_loading=targets is None)
    load_values(
        inner,
        matches,
        lambda name: values_of(tensors, stored[matches[name]], threads),
        lambda name: stored[matches[name]],
        targets=targets,
        versions=getattr(inner.state_dict(), "_metadata", {}),
        verify=tensors.check if isinstance(tensors, LazyTensors) else None,
        store=store,
        advice=difference(matches, inner.state_dict()),
    )
    return model


def _check_fit(
    tensors: Mapping[str, CodedTensor],
    stored: Mapping[str, str],
    matches: Mapping[str, str],
    inner: nn.Module,
    where: str,
    *,
    custom_loading: bool,
) -> None:
    """Refuse a file of another architecture; with custom loading, the network itself decides.

    ``stored`` maps names in the file to coded tensors, ``matches`` names of the network to names in
    the file.
    """
    state = inner.state_dict()
    _check_values(state, custom_loading)
    if custom_loading:
        return
    facts = _facts(tensors)
    trained = {name for name, _ in inner.named_parameters(remove_duplicate=False)}
    both = {name: facts[stored[other]] for name, other in matches.items() if name in state}
    problems = [
        _listed("not in the network", [o for name, o in matches.items() if name not in state]),
        _listed("missing from the file", [name for name in state if name not in matches]),
        _listed(
            "of another shape",
            [
                f"{name} (file {shape}, network {tuple(state[name].shape)})"
                for name, (shape, _) in both.items()
                if tuple(state[name].shape) != shape
            ],
        ),
        _listed(
            "of another kind of values",
            [
                f"{name} (file {dtype}, network {state[name].dtype}: {why})"
                for name, (_, dtype) in both.items()
                if (
                    why := cast_loss(torch_dtype(dtype), state[name].dtype, trained=name in trained)
                )
            ],
        ),
    ]
    if any(problems):
        raise ModelError(
            f"{where} belongs to another architecture than {type(inner).__name__}: "
            + "; ".join(filter(None, problems))
            + "."
            + (
                difference(matches, state)
                or " Build the network with the settings it was compressed with."
            )
        )


def _check_values(state: Mapping[str, object], custom_loading: bool) -> None:
    """Refuse tensors that cannot be filled: of lazy modules, or on meta with custom loading."""
    empty = [
        name
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
        and (nn.parameter.is_lazy(tensor) or (tensor.is_meta and custom_loading))
    ]
    if empty:
        raise ModelError(
            f"{_listed('without values', empty)}: those of lazy modules, or on the meta device in "
            "a network that has its own way of loading. Build the network on a real device, and "
            "run lazy modules once, first."
        )


def _facts(tensors: Mapping[str, CodedTensor]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each tensor; for a file, from its index alone."""
    if isinstance(tensors, LazyTensors):
        return {name: (shape, tensors.dtypes[name]) for name, shape in tensors.shapes.items()}
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network that torch.compile wrapped, whose names are the real ones."""
    own = [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    children = dict(model.named_children())
    return children["_orig_mod"] if list(children) == ["_orig_mod"] and not own else model


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} tensors {what}: {', '.join(names[:_LISTED])}{more}"
