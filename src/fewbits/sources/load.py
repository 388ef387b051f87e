"""Load models and data by name: a string in, a network or data out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import SourceError
from ..registry import Registry
from .base.dataset import DataSource
from .base.registries import DATA, MODELS
from .base.spec import HUBS, as_path, is_path, parse, resolve
from .checkpoints.checkpoint import load_weights
from .checkpoints.mapped import misfit
from .data.idx import has_idx_files

__all__ = ["LoadedModel", "code_of", "load_data", "load_model"]

_DRIVE = re.compile(r"[A-Za-z]:[/\\]")  # how paths begin on Windows


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network in evaluation mode, and how to build it again.

    Attributes:
        module: the network.
        source: the string that names it, with folders written as paths; files store it as
            metadata "source".
        weights: the checkpoint loaded on top, or None.
        untrained: whether it certainly has random weights; unknown, so False, for your own code.
        on_disk: folder of the weights of ``module``, which has none; None if it has its weights.
        note: why it has its weights although it was to have none, or what dtype it took from the
            checkpoint.
    """

    module: nn.Module
    source: str
    weights: str | None = None
    untrained: bool = False
    on_disk: Path | None = None
    note: str = ""

    @property
    def dtype(self) -> str:
        """Name of the dtype that most floating-point weights of ``module`` have."""
        counts: Counter[str] = Counter()
        for parameter in self.module.parameters():
            if parameter.is_floating_point():
                counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
        return next((dtype for dtype, _ in counts.most_common(1)), "float32")


def load_model(
    source: str,
    weights: str | Path | None = None,
    *,
    pretrained: bool = True,
    fetch: bool = True,
    on_disk: bool = False,
    keep_dtype: bool = True,
) -> LoadedModel:
    """Build the network that ``source`` names, and load ``weights`` into it strictly.

    Args:
        source: ``module:callable``, ``builtin:NAME``, ``transformers:NAME``, ``timm:NAME`` or
            ``torchvision:NAME``; or the path of a Hugging Face model's folder.
        weights: a ``.safetensors`` or PyTorch checkpoint.
        pretrained: False builds the architecture only, if weights come from elsewhere.
        fetch: False forbids downloads, for a source named by a file rather than by the caller;
            hub names are then looked up in the local cache only.
        on_disk: build the network without weights if they are in a folder from which they can be
            read when they are used, as ``compress(..., weights=)`` does.
        keep_dtype: whether a float32 network takes float16 or bfloat16 from ``weights``; False
            casts these to float32, as training wants them.

    Raises:
        SourceError: unknown name, failing import, or a checkpoint that does not fit.
        MissingExtraError: the scheme needs a package that is not installed.
    """
    spec = replace(resolve(_of_folder(source), "model", MODELS), fetch=fetch)
    if spec.scheme in HUBS:
        spec = as_path(spec)
    note = ""
    if on_disk and weights is None and spec.scheme == "transformers":
        from .huggingface import folder_of, without_weights  # noqa: PLC0415

        if (folder := folder_of(spec)) is not None:
            module = without_weights(spec).eval()
            note = misfit(module, folder)
            if not note:
                return LoadedModel(module, spec.text, on_disk=folder)
    module = MODELS[spec.scheme](spec, pretrained and weights is None)
    kept = "" if weights is None else load_weights(module, weights, keep_dtype=keep_dtype)
    checkpoint = None if weights is None else str(weights)
    untrained = weights is None and spec.scheme == "builtin"
    note = note and f"the whole network is loaded into memory: {note}"
    return LoadedModel(module.eval(), spec.text, checkpoint, untrained, note=note or kept)


def _of_folder(source: str) -> str:
    """Add the scheme to a model source that is just the path of a Hugging Face model's folder."""
    path = Path(source.partition("?")[0]).expanduser()
    scheme = ":" in source and not _DRIVE.match(source)
    if scheme or source in MODELS or not (is_path(source) or path.is_dir()):
        return source
    if not path.is_dir():
        raise SourceError(
            f"model source {source!r} is a path, but there is no such folder. Name the folder of a "
            "Hugging Face model, or the code that builds the network: module:callable."
        )
    if not (path / "config.json").is_file():
        raise SourceError(
            f"the folder {source!r} has no config.json, so it is not that of a Hugging Face model. "
            "Name the code that builds the network, and its weights: module:callable --weights "
            f"{source}."
        )
    return f"transformers:{source}" if is_path(source) else f"transformers:./{source}"


def code_of(source: str, kind: str) -> str:
    """Return the module whose code would run if ``source`` were loaded; empty if none would.

    ``kind`` is "model" or "data". Imports nothing.

    Raises:
        SourceError: unknown scheme.
    """
    known: Registry[Any] = MODELS if kind == "model" else DATA
    spec = resolve(source if kind == "model" else _with_scheme(source), kind, known)
    return spec.target.partition(":")[0] if spec.scheme == "module" else ""


def load_data(source: str, model: str = "") -> DataSource:
    """Load data by name.

    ``digits``, ``npz:FILE``, ``text:FILE``, ``idx:FOLDER``, ``folder:PATH``, ``datasets:NAME`` or
    ``module:callable``; the path of a ``.npz`` file or of a folder needs no scheme.

    Args:
        source: names the data.
        model: source of the network that it is for. Text is tokenized with the tokenizer in its
            folder.

    Raises:
        SourceError: unknown name, missing or damaged files, labels out of range.
        MissingExtraError: the scheme needs a package that is not installed.
    """
    spec = replace(resolve(_with_scheme(source), "data", DATA), model=model)
    return DATA[spec.scheme](spec)


def _with_scheme(source: str) -> str:
    """Add the scheme to a data source that is just the path of a file or folder."""
    path = Path(source.partition("?")[0])
    if parse(source).scheme not in DATA and source not in DATA:
        if path.suffix == ".npz":
            return f"npz:{source}"
        if path.is_dir():
            return f"{'idx' if has_idx_files(path) else 'folder'}:{source}"
    return source
