"""compressed-tensors, ``pack-quantized``: integers in words of 32 bits, and their steps.

The format of vLLM's own compressor. transformers reads it by the package ``compressed-tensors``,
vLLM by kernels of its own, and llama.cpp's converter turns it into GGUF.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...coded import CodedTensor, Contents, GridTensor, RawTensor
from ...engine.layers.pack import torch_dtype
from ...errors import ConfigError, require
from ...files.atomic_write import write
from ...pretrained import CONFIG, files_of
from ..base import EXPORTERS, Exported
from .integers import change, dense, integers_of, rounded, without_integers
from .network import known_by
from .safetensors_file import Stored, stored_array, stored_tensor, write_safetensors
from .tokenizer import tokenizer_files

__all__ = ["CompressedTensors"]

_WEIGHTS = "model.safetensors"
_SCALES = ("float16", "bfloat16", "float32")
_WORD = 32
_GROUPS = (32, 64, 128)  # that vLLM's kernels have

Scheme = tuple[int, int]  # bits of integers, inputs that share a step (0: all of a neuron)


@EXPORTERS.register("compressed-tensors")
@dataclass(frozen=True, kw_only=True)
class CompressedTensors:
    """A folder with ``config.json`` and ``model.safetensors``; linear layers are packed integers.

    Attributes:
        bits: of packed integers, 2 to 8. None: 4 where they fit, else 8, which vLLM reads.
        group: inputs that share a step in the file; steps of more inputs are repeated. llama.cpp's
            converter reads groups only, of one length. None: as in the network.
        scales: dtype of steps. None: that of the network.
        tokenizer: folder of a Hugging Face model whose tokenizer is copied.
    """

    name: ClassVar[str] = "compressed-tensors"
    summary: ClassVar[str] = "a folder of packed integers and steps (pack-quantized)"
    suffix: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    runs: ClassVar[str] = "transformers, llama.cpp's converter; made for vLLM, not run in it"
    needs: ClassVar[str] = "model"
    keeps_codes: ClassVar[bool] = True

    bits: int | None = None
    group: int | None = None
    scales: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        good = self.bits is None or (whole and 2 <= self.bits <= 8)
        require(good, "bits", "None or an integer from 2 to 8", self.bits)
        whole = isinstance(self.group, int) and not isinstance(self.group, bool)
        good = self.group is None or (whole and self.group >= 1)
        require(good, "group", "None or an integer from 1 up", self.group)
        good = self.scales is None or self.scales in _SCALES
        require(good, "scales", f"None or one of {', '.join(_SCALES)}", self.scales)
        if self.tokenizer is not None:
            good = isinstance(self.tokenizer, str) and Path(self.tokenizer).is_dir()
            require(good, "tokenizer", "the path of a folder", self.tokenizer)

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> Exported:
        """Write the folder; see :class:`fewbits.exporters.Exporter`.

        Raises:
            ConfigError: the folder has other weights already, or ``path`` is a file.
            ModelError: the network is not that of the file.
        """
        if model is None:
            raise ConfigError("which layers are linear follows from the network: pass model=.")
        contents, network = known_by(contents, model)
        files = files_of(network)
        linear = {
            name
            for name, module in network.named_modules(remove_duplicate=False)
            if isinstance(module, nn.Linear)
        }
        made = _Made(self)
        for name, tensor in contents.tensors.items():
            made.add(name, tensor, name.removesuffix(".weight") in linear, contents)
        made.settle()
        if CONFIG not in files:  # transformers ties weights itself
            made.tie(contents)
        config = dict(files.get(CONFIG, {}))
        if made.schemes:
            config["quantization_config"] = _settings(made, sorted(linear))
        texts: dict[str, bytes] = {} if self.tokenizer is None else tokenizer_files(self.tokenizer)
        for file, value in {**files, CONFIG: config}.items():
            texts[file] = (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
        path.mkdir(exist_ok=True)
        size = write_safetensors(path / _WEIGHTS, made.tensors, {"format": "pt"})
        for file, text in texts.items():
            write(text, path / file)
        notes = made.notes()
        if CONFIG not in files:
            notes.append(f"{CONFIG} tells only how weights are packed: the network has none")
        if contents.activations:
            notes.append(f"{len(contents.activations)} quantized inputs are left out")
        weights = {f"{name}.weight": bits for name, (bits, _) in made.schemes.items()}
        total = size + sum(map(len, texts.values()))
        return Exported(path, total, weights, notes=tuple(notes))


@dataclass
class _Made:
    """What the folder will hold.

    Attributes:
        settings: options of the exporter.
        tensors: of the file, by name.
        schemes: of packed layers, by the layer's name.
        floats: why quantized weights are in floats, by name.
        lost: what is left out, and why.
        changed: the largest relative change of a step, by the dtype to which it was rounded.
        undivided: weights whose steps are for groups that the wanted one does not divide.
    """

    settings: CompressedTensors
    tensors: dict[str, Stored] = field(default_factory=dict)
    schemes: dict[str, Scheme] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    changed: dict[str, float] = field(default_factory=dict)
    undivided: int = 0

    def add(self, name: str, tensor: CodedTensor, linear: bool, contents: Contents) -> None:
        """Add a tensor: packed if it is the weight of a linear layer and fits, else values."""
        why = ""
        if not isinstance(tensor, RawTensor):
            why = _hindrance(name, tensor, linear, contents)
            if isinstance(tensor, GridTensor) and not why:
                why = self._pack(name.removesuffix(".weight"), tensor)
                if not why:
                    return
        values = dense(tensor)
        found = stored_tensor(values)
        if found is None:
            self.lost.append(f"{name}: left out, the format has no {tensor.dtype}")
            return
        self.tensors[name] = found
        if why:
            dtype = str(values.dtype).removeprefix("torch.")
            lossy = "" if tensor.dtype == dtype else ", rounded"
            self.floats[name] = f"in {dtype}{lossy}: {why}"

    def _pack(self, layer: str, tensor: GridTensor) -> str:
        """Add a packed weight, or return why it does not fit."""
        found = integers_of(tensor)
        if found is None:
            return "its integers are too large"
        bits = self.settings.bits or (4 if found.bits <= 4 else 8)
        if found.bits > bits:
            return f"its integers take {found.bits} bits, more than {bits}"
        if self.settings.group is not None:
            divided = found.divided(self.settings.group)
            self.undivided += divided is None
            found = divided or found
        own = tensor.dtype if tensor.dtype in _SCALES else "float32"
        dtype = self.settings.scales or own
        scale = rounded(found.step, torch_dtype(dtype))
        steps = None if scale is None else stored_tensor(scale)
        if scale is None or steps is None:
            return f"its steps are beyond {dtype}"
        if worst := change(found.step, scale):
            self.changed[dtype] = max(worst, self.changed.get(dtype, 0.0))
        self.tensors[f"{layer}.weight_packed"] = stored_array(_words(found.index, bits))
        self.tensors[f"{layer}.weight_scale"] = steps
        self.tensors[f"{layer}.weight_shape"] = stored_array(np.array(tensor.shape, np.int64))
        self.schemes[layer] = (bits, 0 if found.step.shape[1] == 1 else found.group)
        return ""

    def settle(self) -> None:
        """Call a row a group where other layers have groups of its length: one scheme less."""
        groups = {group for _, group in self.schemes.values()} | {self.settings.group}
        for layer, (bits, group) in self.schemes.items():
            columns = int(self.tensors[f"{layer}.weight_shape"].data[1])
            if not group and columns in groups:
                self.schemes[layer] = (bits, columns)

    def tie(self, contents: Contents) -> None:
        """Add tied tensors under their other names too."""
        for alias, name in contents.aliases.items():
            for old in [old for old in self.tensors if old == name or old.startswith(f"{name}_")]:
                self.tensors[alias + old.removeprefix(name)] = self.tensors[old]

    def notes(self) -> list[str]:
        """Return what differs from the compressed network, and what may hinder a reader."""
        notes = [*(f"{name}: {why}" for name, why in self.floats.items()), *self.lost]
        for dtype, worst in self.changed.items():
            notes.append(
                f"steps are rounded to {dtype}, by up to {100 * worst:.2g} %; integers are the "
                "network's. scales='float32' keeps steps as they are"
            )
        if self.undivided:
            notes.append(
                f"{self.undivided} weights keep their own groups: group={self.settings.group} does "
                "not divide these"
            )
        if not self.schemes:
            return [*notes, "no weight fits: the folder is that of a network of floats"]
        kinds = sorted(set(self.schemes.values()))
        widths = sorted({bits for bits, _ in kinds})
        groups = sorted({group for _, group in kinds})
        if not set(widths) <= {4, 8} or not set(groups) <= {0, *_GROUPS}:
            notes.append("vLLM's kernels have 4 and 8 bits, and groups of 32, 64 and 128, or none")
        if any(_WORD % bits for bits in widths):
            notes.append(
                "integers of 3, 5, 6 and 7 bits are packed as compressed-tensors 0.17 does, as "
                "many as fit whole in a word; other readers may expect one stream of bits"
            )
        if len(kinds) > 1 or groups == [0]:
            told = ", ".join(f"{b} bits in {f'groups of {g}' if g else 'rows'}" for b, g in kinds)
            notes.append(
                f"llama.cpp's converter reads one width in groups of one length; these are {told}. "
                "bits=8 makes one width, group=32 makes groups"
            )
        return notes


def _hindrance(name: str, tensor: CodedTensor, linear: bool, contents: Contents) -> str:
    """Return why a quantized tensor cannot be packed; "" if it may."""
    if not linear or not name.endswith("weight") or len(tensor.shape) != 2:
        return "it is not the weight of a linear layer"
    if name in contents.aliases.values():
        return "it is tied to another weight"
    return without_integers(tensor)


def _words(index: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Return integers around 2**(bits - 1), several in a word, the first in its lowest bits."""
    share = _WORD // bits
    rows, columns = index.shape
    padded = np.zeros((rows, -(-columns // share) * share), np.uint32)
    padded[:, :columns] = index + (1 << (bits - 1))
    places = np.arange(share, dtype=np.uint32) * np.uint32(bits)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(
        padded.reshape(rows, -1, share) << places, axis=2
    )
    return words.view(np.int32)


def _settings(made: _Made, linear: list[str]) -> dict[str, Any]:
    """Return the ``quantization_config``.

    With one scheme, its target is the class of layers. With several each names its layers: readers
    that fuse layers look at classes first, and would take the same for all.
    """
    counts = Counter(made.schemes.values())
    groups = {}
    for place, ((bits, group), _) in enumerate(counts.most_common()):
        targets = [name for name, scheme in made.schemes.items() if scheme == (bits, group)]
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if group else "channel",
            "group_size": group or None,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
        }
        groups[f"group_{place}"] = {
            "targets": ["Linear"] if len(counts) == 1 else targets,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linear if name not in made.schemes],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
