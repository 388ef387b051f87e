"""GGUF, the format of llama.cpp: blocks of 32 weights with a step in float16.

A Llama has llama.cpp's names, keys and order of rows; other networks have their own names, for
readers of the format such as the package ``gguf``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...coded import CodedTensor, Contents, GridTensor, RawTensor
from ...engine.layers.pack import to_torch, torch_dtype
from ...errors import ConfigError, require
from ...pretrained import CONFIG, files_of
from ..base import EXPORTERS, Exported
from .gguf_file import BLOCK, Value, Weights, blocks_of, weights_of, write_gguf
from .integers import (
    HALF,
    Integers,
    change,
    dense,
    integers_of,
    rounded,
    without_integers,
)
from .llama import Llama
from .network import known_by
from .tokenizer import tokenizer_keys

__all__ = ["GGUF"]

_FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "BF16": 32, "F16": 1}


@EXPORTERS.register("gguf")
@dataclass(frozen=True, kw_only=True)
class GGUF:
    """A GGUF file with Q4_0 and Q8_0 blocks of the network's own integers.

    Attributes:
        tokenizer: folder of a Hugging Face model whose tokenizer is written too, for a Llama. It
            must be a byte-level BPE, such as that of Llama 3.
        pre: llama.cpp's name of the tokenizer's rules for words, such as "llama-bpe" or "smollm".
    """

    name: ClassVar[str] = "gguf"
    summary: ClassVar[str] = "blocks of 32 integers with a step in float16 (Q4_0, Q8_0)"
    suffix: ClassVar[str] = ".gguf"
    extra: ClassVar[str] = ""
    runs: ClassVar[str] = "llama.cpp (Llamas), the package gguf"
    needs: ClassVar[str] = "model"
    keeps_codes: ClassVar[bool] = True

    tokenizer: str | None = None
    pre: str = "default"

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            good = isinstance(self.tokenizer, str) and Path(self.tokenizer).is_dir()
            require(good, "tokenizer", "the path of a folder", self.tokenizer)
        require(isinstance(self.pre, str) and bool(self.pre), "pre", "a name", self.pre)

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> Exported:
        """Write the file; see :class:`fewbits.exporters.Exporter`.

        Raises:
            ConfigError: the tokenizer cannot be written.
            ModelError: the network is not that of the file.
        """
        if model is None:
            raise ConfigError("names and keys follow from the network: pass model=.")
        contents, network = known_by(contents, model)
        llama = Llama(files_of(network).get(CONFIG, {}))
        why = llama.hindrance(contents.tensors)
        made = _Made(None if why else llama)
        for name, tensor in contents.tensors.items():
            made.add(name, _first_name(name, contents), tensor)
        keys: dict[str, Value] = {"general.architecture": "fewbits" if why else "llama"}
        kinds = Counter(weights.kind for weights in made.tensors.values() if len(weights.shape) > 1)
        keys["general.file_type"] = _FILE_TYPES.get(next(iter(kinds.most_common(1)), ("",))[0], 0)
        keys["general.quantization_version"] = 2
        notes = made.notes()
        if why:
            notes.insert(0, f"names are those of the network, which is no Llama: {why}")
            notes += self._left_out(contents)
        else:
            keys |= llama.keys() | self._tokenizer(llama)
            notes += self._about_llama()
        if contents.activations:
            notes.append(f"{len(contents.activations)} quantized inputs are left out")
        return Exported(path, write_gguf(path, keys, made.tensors), made.bits, notes=tuple(notes))

    def _tokenizer(self, llama: Llama) -> dict[str, Value]:
        if self.tokenizer is None:
            return {"tokenizer.ggml.model": "none"}
        return tokenizer_keys(self.tokenizer, int(llama.config["vocab_size"]), self.pre)

    def _about_llama(self) -> list[str]:
        notes = ["names, keys and the order of rows are llama.cpp's"]
        if self.tokenizer is None:
            notes.append("no tokenizer: --set tokenizer=FOLDER, or tokenizer=, adds it")
        elif self.pre == "default":
            notes.append(
                "the tokenizer's rules for words are called 'default', which may differ from its "
                "own: --set pre=NAME, or pre=, gives llama.cpp's name of them, such as llama-bpe"
            )
        return notes

    def _left_out(self, contents: Contents) -> list[str]:
        notes = [f"{alias}: left out, it is {name}" for alias, name in contents.aliases.items()]
        if self.tokenizer is not None:
            notes.append("the tokenizer is left out: only Llamas have one")
        return notes


def _first_name(name: str, contents: Contents) -> str:
    """Return the name of a tensor, or that of the embedding if it is tied to it."""
    embedding = "model.embed_tokens.weight"
    return embedding if contents.aliases.get(embedding) == name else name


@dataclass
class _Made:
    """What the file will hold, and what it does not.

    Attributes:
        llama: the network, if it is one that llama.cpp reads.
        tensors: by the name in the file.
        bits: of integers, by the network's name.
        floats: why weights have no integers, by the network's name.
        lost: names of tensors that the format has no type for.
        changed: the largest relative change of a step.
        rounded: weights with such changes.
        halves: weights of 16 bits in the network, for which blocks give float32.
    """

    llama: Llama | None
    tensors: dict[str, Weights] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    changed: float = 0.0
    rounded: int = 0
    halves: int = 0

    def __post_init__(self) -> None:
        frequencies = None if self.llama is None else self.llama.frequencies()
        found = None if frequencies is None else weights_of(frequencies)
        if found is not None:
            self.tensors["rope_freqs.weight"] = found

    def add(self, stored: str, name: str, tensor: CodedTensor) -> None:
        """Add a tensor, by its name in the compressed network and the one it is known by."""
        theirs = name if self.llama is None else self.llama.name(name)
        order = None if self.llama is None else self.llama.order(name)
        integers, why = _integers(tensor)
        if integers is not None:
            integers = integers if order is None else integers.rows(order)
            found: Weights | None = blocks_of(integers, tensor.shape)
            self.bits[stored] = 4 if integers.bits <= 4 else 8
            half = rounded(integers.step, torch.float16)
            worst = 0.0 if half is None else change(integers.step, half)
            self.changed, self.rounded = max(self.changed, worst), self.rounded + (worst > 0)
            self.halves += torch_dtype(tensor.dtype) in HALF
        else:
            values = _values(tensor)
            if order is not None:
                values = values[torch.from_numpy(order)]
            found = weights_of(values)
            if why:
                self.floats[stored] = f"in {'' if found is None else found.kind}, {why}"
        if found is None or 0 in found.shape:
            self.lost.append(f"{stored}: left out, {_lost(tensor)}")
        else:
            self.tensors[theirs] = found

    def notes(self) -> list[str]:
        """Return what differs from the compressed network."""
        notes = [f"{name}: {why}" for name, why in self.floats.items()]
        if self.rounded:
            notes.append(
                f"steps of {self.rounded} weights are rounded to float16, which changes their "
                f"values by up to {100 * self.changed:.2g} %; integers are the network's"
            )
        if self.halves:
            notes.append(
                f"{self.halves} weights have 16 bits in the network; here they are the products of "
                "integers and steps, not rounded to 16 bits"
            )
        return notes + self.lost


def _integers(tensor: CodedTensor) -> tuple[Integers | None, str]:
    """Return integers with steps that blocks can hold; or None, and why if it is quantized."""
    if isinstance(tensor, RawTensor):
        return None, ""
    why = without_integers(tensor)
    found = integers_of(tensor) if isinstance(tensor, GridTensor) and not why else None
    if found is None:
        return None, why or "its integers are too large"
    why = _misfit(found, tensor.shape)
    return None if why else found, why


def _misfit(found: Integers, shape: tuple[int, ...]) -> str:
    """Return why blocks cannot hold integers and steps; "" if they can."""
    if len(shape) != 2:
        return "blocks are for matrices"
    if found.bits > 8:
        return f"its integers take {found.bits} bits, and blocks have 4 or 8"
    if not found.group or found.group % BLOCK:
        return f"{found.group} inputs share a step, which is no multiple of {BLOCK}"
    return "its steps are beyond float16" if rounded(found.step, torch.float16) is None else ""


def _values(tensor: CodedTensor) -> Tensor:
    """Return values as llama.cpp wants them: vectors in float32."""
    if len(tensor.shape) > 1:
        return dense(tensor)
    values = to_torch(tensor)
    return values.float() if values.dtype in HALF else values


def _lost(tensor: CodedTensor) -> str:
    return "it is empty" if 0 in tensor.shape else f"the format has no {tensor.dtype}"
