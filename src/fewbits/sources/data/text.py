"""``text:FILE``: windows of a text, or its lines, as numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError, SourceError
from ...files.json_values import read_json, read_text
from ..base.array_files import data_file
from ..base.dataset import DataSource, IndexedSplit, permutation
from ..base.registries import DATA
from ..base.spec import Spec, choice, natural, parse, switch, text, whole
from .tokens import Tokens, tokens_of

__all__ = ["TextSplit", "text_data"]

_WINDOW = 512  # tokens
_BATCH = 8  # samples: the logits of a language model are large
_IGNORED = -100  # in labels, as in PyTorch


def _lines(value: str) -> bool:
    """Parse the option ``lines``: "sentences", or a boolean."""
    return value == "sentences" or switch(value)


_OPTIONS = {
    **{"tokens": whole, "samples": whole, "seed": natural, "tokenizer": text},
    **{"lines": _lines, "labels": choice("inputs", "none")},
}


@dataclass(frozen=True, eq=False)
class TextSplit(IndexedSplit):
    """Samples of tokens, padded to the longest of their batch.

    A batch is a dict of int64 ``(n, tokens)``: "input_ids"; "attention_mask", 0 at padding, if
    there is padding; and, if ``labelled``, "labels", which are the inputs, with -100 at padding.
    """

    samples: Sequence[Tensor] = field(repr=False)
    padding: int = 0
    labelled: bool = False

    @property
    def usual_batch(self) -> int:
        """Samples per batch where none are asked for."""
        return _BATCH

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def fetch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the batch of these samples."""
        rows = [self.samples[int(index)] for index in indices]
        lengths = torch.tensor([len(row) for row in rows])
        inputs = torch.nn.utils.rnn.pad_sequence(rows, True, self.padding)
        mask = torch.arange(inputs.shape[1]) < lengths[:, None]
        batch = {"input_ids": inputs}
        if not mask.all():
            batch["attention_mask"] = mask.long()
        if self.labelled:
            batch["labels"] = inputs.masked_fill(~mask, _IGNORED)
        return batch


@DATA.register("text")
def text_data(spec: Spec) -> DataSource:
    """Load a text as windows of ``tokens=512`` that do not overlap; what is left over is dropped.

    The tokenizer is that of the network's folder, or ``tokenizer=FOLDER``; it comes from local
    files, and its code is never run. Numbers of tokens are read from ``.npy`` or ``.npz`` (``(n,)``
    to be cut, or one sample in each row), and ``tokenizer=bytes`` takes the bytes of the file.

    Options: ``samples`` (for calibration windows drawn by ``seed=0``, for evaluation the first
    ones; default: all), ``lines=sentences`` (each line is a sample of at most ``tokens``, padded in
    its batch), ``labels=inputs`` or ``none`` (for encoder-decoders, whose labels are the inputs by
    default). ``text:FILE:tokens=512,samples=128`` says the same as ``?tokens=512&samples=128``.

    One file serves as every split: either for calibration *or* for evaluation.
    """
    spec = spec.with_short_options()
    options = spec.parsed(_OPTIONS)
    path = data_file(Path(spec.need_target("file", "text:book.txt")).expanduser())
    limit, as_lines = options.get("tokens", _WINDOW), options.get("lines", False)
    tokens = tokens_of(path, options.get("tokenizer", ""), spec, lines=limit if as_lines else None)
    samples = _samples(tokens, limit, path)
    count = min(options.get("samples", len(samples)), len(samples))
    labelled = _is_labelled(spec, options.get("labels"))
    drawn = permutation(len(samples), options.get("seed", 0))[:count]
    train, test = (
        TextSplit([samples[int(index)] for index in chosen], tokens.padding, labelled)
        for chosen in (drawn, range(count))
    )
    what = "lines" if as_lines else "samples" if tokens.rows else f"windows of {len(samples[0])}"
    return DataSource(
        spec.text,
        train,
        test,
        preprocessing=f"{what}, tokens of {tokens.origin}",
        one_loader=True,
        file=path.resolve(),
    )


def _samples(tokens: Tokens, limit: int, path: Path) -> list[Tensor]:
    """Return the samples; raise if there is none."""
    if tokens.rows:
        found = [row for row in tokens.rows if len(row)]
    else:
        size = min(limit, len(tokens.stream))
        whole_windows = len(tokens.stream) // max(1, size)
        found = list(tokens.stream[: whole_windows * size].reshape(-1, max(1, size)))
    if not found or max(map(len, found)) < 2:
        raise SourceError(f"{path}: has less than two tokens in a sample. Name a longer text.")
    return found


def _is_labelled(spec: Spec, wanted: str | None) -> bool:
    """Return whether inputs are labels too: if asked for, or for an encoder-decoder."""
    if wanted is not None:
        return wanted == "inputs"
    config = Path(parse(spec.model).target).expanduser()
    config = config / "config.json" if config.is_dir() else config
    try:
        found = read_json(read_text(config)) if config.name.endswith(".json") else {}
    except (OSError, ConfigError):
        return False
    return isinstance(found, dict) and found.get("is_encoder_decoder") is True
