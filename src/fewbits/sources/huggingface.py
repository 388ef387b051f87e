"""``transformers:NAME-or-path`` models and ``datasets:NAME[:config]`` data; extra ``hf``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engine.paged.paging import empty_weights
from ..errors import FewbitsError, SourceError, did_you_mean
from .base.dataset import DataSource, IndexedSplit, labels_from
from .base.offline import NOT_FETCHED, offline
from .base.registries import DATA, MODELS
from .base.spec import Spec, choice, is_path, optional_import, text
from .data.images import IMAGE_OPTIONS, ImageReader

__all__ = ["DatasetSplit", "datasets_data", "folder_of", "transformers_model", "without_weights"]

_TEST_NAMES = ("test", "validation", "val")
_OPTIONS = {"class": text, "weights": choice("pretrained", "random")}


@MODELS.register("transformers")
def transformers_model(spec: Spec, pretrained: bool) -> nn.Module:
    """Load a network by its name on the hub, or from a folder; code from the hub is never run.

    A path ("./vit", "/models/vit") is a folder or a ``config.json``, and never looked up on the
    hub.

    Options: ``class=AutoModelForImageClassification`` (default: the class that the configuration
    names) and ``weights=random``, required for a ``config.json`` alone.
    """
    options = spec.parsed(_OPTIONS)
    random = options.get("weights") == "random" or not pretrained
    return _build(spec, options, "random" if random else "pretrained")


def folder_of(spec: Spec) -> Path | None:
    """Return the folder of safetensors files that a source names; None if it names none."""
    if spec.parsed(_OPTIONS).get("weights") == "random" or not is_path(spec.target):
        return None
    folder = Path(spec.target).expanduser()
    return folder if folder.is_dir() and any(folder.glob("*.safetensors")) else None


def without_weights(spec: Spec) -> nn.Module:
    """Build the network that a source names, with its parameters on the meta device."""
    return _build(spec, spec.parsed(_OPTIONS), "none")


def _build(spec: Spec, options: dict[str, Any], weights: str) -> nn.Module:
    """Build a network with weights that are "pretrained", "random" or "none"."""
    name = spec.need_target("network", "transformers:distilbert-base-uncased")
    library = optional_import("transformers", "hf", f"model source {spec.text!r}")
    random = weights != "pretrained"
    if name.endswith(".json") and not random:
        raise SourceError(
            f"source {spec.text!r} is a configuration without weights. Add ?weights=random for "
            "random weights, or --weights FILE to load trained ones."
        )
    if is_path(name):
        name = _existing(name, spec)
    here: dict[str, Any] = {} if spec.fetch else {"local_files_only": True}
    try:
        with offline(not spec.fetch):
            config = library.AutoConfig.from_pretrained(name, **here)
            builder = _model_class(library, config, options.get("class"), spec)
            automatic = hasattr(builder, "from_config")
            if not random:
                model = builder.from_pretrained(name, **here)
            else:
                empty = empty_weights() if weights == "none" else nullcontext()
                with empty, _default_dtype(getattr(config, "dtype", None)):
                    model = builder.from_config(config) if automatic else builder(config)
    except FewbitsError:
        raise
    except Exception as error:  # the library raises whatever its own libraries do
        hint = "" if spec.fetch else NOT_FETCHED.format(source=spec.text)
        raise SourceError(f"source {spec.text!r}: transformers failed: {error}{hint}") from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"source {spec.text!r} gave a {type(model).__name__}, not a network.")
    return model


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """Build parameters in the dtype of a configuration, which is that of its checkpoint."""
    before = torch.get_default_dtype()
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    torch.set_default_dtype(dtype if known else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _existing(name: str, spec: Spec) -> str:
    path = Path(name).expanduser()
    if not path.exists():
        raise SourceError(
            f"source {spec.text!r} is a path that does not exist (paths are not looked up on the "
            "hub). Name the folder's present location: --model transformers:/path/to/folder."
        )
    return str(path) if path.is_absolute() else name


def _model_class(library: Any, config: Any, name: str | None, spec: Spec) -> Any:
    if name is None:
        architectures = getattr(config, "architectures", None) or ["AutoModel"]
        return getattr(library, architectures[0], library.AutoModel)
    if not hasattr(library, name):
        known = [word for word in dir(library) if word.startswith("AutoModel")]
        raise SourceError(
            f"source {spec.text!r}: transformers has no class {name!r}." + did_you_mean(name, known)
        )
    return getattr(library, name)


@dataclass(frozen=True, eq=False)
class DatasetSplit(IndexedSplit):
    """One split of a ``datasets`` data set with a column of images and one of labels."""

    rows: Any
    image: str
    labels: Tensor
    reader: ImageReader

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Decode the images of these rows."""
        names = [f"in row {index}" for index in indices]
        inputs = self.reader.batch(names, lambda k: self.rows[int(indices[k])][self.image])
        return inputs, self.labels[torch.from_numpy(np.ascontiguousarray(indices))]


@DATA.register("datasets")
def datasets_data(spec: Spec) -> DataSource:
    """Load images and labels by their name on the hub, or from a folder.

    Options: image and label (column names; default: the first that fits), train and test (split
    names), and size, resize, channels, mean, std as for image folders.
    """
    words = {"image": text, "label": text, "train": text, "test": text}
    options = spec.parsed({**IMAGE_OPTIONS, **words})
    name, _, config = spec.need_target("data set", "datasets:mnist").partition(":")
    library = optional_import("datasets", "hf", f"data source {spec.text!r}")
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            tables = library.load_from_disk(name)
        else:
            tables = library.load_dataset(name, config or None)
    except Exception as error:
        raise SourceError(f"source {spec.text!r}: datasets failed: {error}") from error
    test = options.get("test") or next((n for n in _TEST_NAMES if n in tables), None)
    wanted = {"train": options.get("train", "train"), "test": test}
    reader = ImageReader.from_options(options)
    splits = {
        split: _dataset_split(tables[name], options, reader, f"{spec.text}, split {name}")
        for split, name in wanted.items()
        if name is not None and name in tables
    }
    if not splits:
        raise SourceError(
            f"source {spec.text!r} has the splits {', '.join(map(str, tables))}; choose with "
            "?train=NAME&test=NAME."
        )
    return DataSource(spec.text, splits.get("train"), splits.get("test"), preprocessing=str(reader))


def _dataset_split(
    rows: Any, options: dict[str, Any], reader: ImageReader, where: str
) -> DatasetSplit:
    columns = list(rows.column_names)
    image = options.get("image") or next((c for c in ("image", "img") if c in columns), None)
    label = options.get("label") or next((c for c in ("label", "fine_label") if c in columns), None)
    if image is None or label is None or not {image, label} <= set(columns):
        raise SourceError(
            f"{where}: needs a column of images and one of labels; it has {', '.join(columns)}. "
            "Name them with ?image=COLUMN&label=COLUMN; for text write your own 'module:callable'."
        )
    return DatasetSplit(rows, image, labels_from(rows[label], None, where), reader)
