"""The tokens of a file: by a tokenizer, as stored numbers, or its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SourceError
from ..base.array_files import read_npy, read_npz
from ..base.offline import offline
from ..base.spec import HUBS, Spec, optional_import, parse

__all__ = ["Tokens", "tokens_of"]

_BYTES = "bytes"  # instead of the folder of a tokenizer
_ARRAYS = ("input_ids", "tokens", "x")  # names of the array in a .npz


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a file.

    Attributes:
        stream: int64 ``(n,)``; empty if there are rows.
        rows: samples that the file itself divides, int64 ``(n,)`` each.
        padding: number of the token to pad with.
        origin: where the numbers come from, for people.
    """

    stream: Tensor
    rows: list[Tensor] = field(default_factory=list)
    padding: int = 0
    origin: str = ""


def tokens_of(path: Path, tokenizer: str, spec: Spec, *, lines: int | None) -> Tokens:
    """Return the tokens of a file.

    Args:
        path: a text in UTF-8, or a ``.npy`` or ``.npz`` with numbers of tokens.
        tokenizer: folder of the tokenizer, or "bytes"; empty for that of the network.
        spec: the source, for messages.
        lines: largest length of a line; every line that is not blank is a sample. None reads the
            text as a whole.

    Raises:
        SourceError: the file is not readable as such, or there is no tokenizer for it.
        MissingExtraError: a tokenizer without the package transformers.
    """
    if path.suffix in (".npy", ".npz"):
        if tokenizer or lines is not None:
            raise SourceError(
                f"source {spec.text!r}: {path.name} holds numbers of tokens, so there is "
                "nothing to tokenize or to divide into lines. Leave these options out."
            )
        return _stored(path)
    if tokenizer == _BYTES:
        data = path.read_bytes()
        if lines is None:
            return Tokens(_numbers(data), origin="bytes")
        parts = [_numbers(part[:lines]) for part in data.splitlines() if part.strip()]
        return Tokens(_numbers(b""), parts, origin="bytes")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: is not a text in UTF-8 ({error.reason} at byte {error.start:,}). Convert it, "
            "or add tokenizer=bytes for a network that reads bytes."
        ) from None
    return _tokenized(content, tokenizer, spec, lines)


def _numbers(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64))


def _stored(path: Path) -> Tokens:
    """Read numbers of tokens: (n,) is a stream, (samples, tokens) has one sample in each row."""
    if path.suffix == ".npy":
        array = read_npy(path)
    else:
        arrays, names = read_npz(path, _ARRAYS)
        if len(arrays) != 1:
            raise SourceError(
                f"{path}: expected one array of tokens, named {', '.join(_ARRAYS)}; it has: "
                f"{names}."
            )
        (array,) = arrays.values()
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise SourceError(
            f"{path}: has {array.dtype} of shape {array.shape}; expected numbers of tokens: "
            "integers (n,), or (samples, tokens)."
        )
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**31:
        raise SourceError(f"{path}: has tokens outside [0, 2^31).")
    values = torch.from_numpy(array.astype(np.int64))
    if array.ndim == 1:
        return Tokens(values, origin=path.name)
    return Tokens(_numbers(b""), list(values), origin=path.name)


def _tokenized(content: str, folder: str, spec: Spec, lines: int | None) -> Tokens:
    folder = folder or _folder_of_network(spec)
    tokenizer = _tokenizer(folder, spec)
    plain: dict[str, Any] = {"verbose": False}
    try:
        if lines is None:
            rows, stream = [], tokenizer(content, **plain)["input_ids"]
        else:
            sentences = [line for line in content.splitlines() if line.strip()]
            cut = {"truncation": True, "max_length": lines}
            found = tokenizer(sentences, **plain, **cut)["input_ids"] if sentences else []
            rows, stream = [torch.tensor(row, dtype=torch.int64) for row in found], []
    except Exception as error:  # the library raises whatever its own libraries do
        raise SourceError(f"source {spec.text!r}: the tokenizer failed: {error}") from error
    padding = next(
        (n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id) if n is not None), 0
    )
    return Tokens(torch.tensor(stream, dtype=torch.int64), rows, int(padding), folder)


def _folder_of_network(spec: Spec) -> str:
    """Return the folder or hub name of the network's tokenizer."""
    model = parse(spec.model)
    if model.scheme in ("", *HUBS) and model.target and not model.target.endswith(".json"):
        return model.target
    raise SourceError(
        f"source {spec.text!r} needs a tokenizer, and the network {spec.model!r} is not a folder "
        "that has one. Add tokenizer=FOLDER (that of a Hugging Face tokenizer), tokenizer=bytes "
        "for a network that reads bytes, or name a .npy file with numbers of tokens."
    )


def _tokenizer(folder: str, spec: Spec) -> Any:
    """Load a tokenizer from local files, and run no code of its folder."""
    library = optional_import("transformers", "hf", f"data source {spec.text!r}")
    try:
        with offline(True):
            return library.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the library raises whatever its own libraries do
        raise SourceError(
            f"source {spec.text!r}: no tokenizer could be read from {folder!r}: {error}. Add "
            "tokenizer=FOLDER, or name a .npy file with numbers of tokens."
        ) from error
