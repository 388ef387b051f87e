"""torchao: a state dict whose linear weights are its int4 tensors for processors.

The codes are ours: a value of ``Int4OpaqueTensor`` is ``(code - 8) * scale + zero``, with a scale
and a zero for each 32, 64, 128 or 256 inputs of a neuron, and zeros are zero here. It is a
prototype, for which torchao promises nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...coded import CodedTensor, Contents, GridTensor, RawTensor
from ...engine.layers.pack import to_torch
from ...errors import ConfigError, MissingExtraError
from ...files.atomic_write import write
from ..base import EXPORTERS, Exported
from .integers import Integers, change, integers_of, rounded, without_integers
from .network import known_by

__all__ = ["TorchAO"]

_GROUPS = (256, 128, 64, 32)  # of inputs, with a scale each, that the kernel has
_NEURONS = 16  # whose multiples it has
_DTYPES = ("float32", "bfloat16", "float16")
_MIDDLE = 8


@EXPORTERS.register("torchao")
@dataclass(frozen=True, kw_only=True)
class TorchAO:
    """A file for ``torch.load(weights_only=True)`` and ``load_state_dict(assign=True)``.

    Weights of linear layers with integers of 4 bits become ``Int4OpaqueTensor``; all others are
    values in the network's dtype.
    """

    name: ClassVar[str] = "torchao"
    summary: ClassVar[str] = "a state dict whose linear weights are int4 tensors of torchao"
    suffix: ClassVar[str] = ".pt"
    extra: ClassVar[str] = "torchao"
    runs: ClassVar[str] = "torchao's int4 tensors for processors, a prototype"
    needs: ClassVar[str] = "model"
    keeps_codes: ClassVar[bool] = True

    def export(
        self, contents: Contents, path: Path, model: nn.Module | None, inputs: tuple[Tensor, ...]
    ) -> Exported:
        """Write the file; see :class:`fewbits.exporters.Exporter`.

        Raises:
            MissingExtraError: torchao is not installed (``pip install fewbits[torchao]``).
            ModelError: the network is not that of the file.
        """
        kind = _int4()
        if model is None:
            raise ConfigError("which layers are linear follows from the network: pass model=.")
        contents, network = known_by(contents, model)
        modules = dict(network.named_modules(remove_duplicate=False))
        state: dict[str, Tensor] = {}
        weights, notes, worst = {}, [], 0.0
        for name, tensor in contents.tensors.items():
            why = _hindrance(name, tensor, modules, contents.aliases)
            packed = None if why or not isinstance(tensor, GridTensor) else _packed(kind, tensor)
            if isinstance(packed, tuple):
                state[name], changed = packed
                weights[name], worst = 4, max(worst, changed)
                continue
            state[name] = to_torch(tensor)
            if not isinstance(tensor, RawTensor):
                notes.append(f"{name}: in {tensor.dtype}: {why or packed}")
        state |= {alias: state[name] for alias, name in contents.aliases.items()}
        file = io.BytesIO()
        torch.save(state, file)
        write(file.getvalue(), path)
        if worst:
            notes.append(f"steps are rounded to the network's dtype, by up to {100 * worst:.2g} %")
        if contents.activations:
            notes.append(f"{len(contents.activations)} quantized inputs are left out")
        return Exported(path, len(file.getvalue()), weights, notes=tuple(notes))


def _int4() -> Any:
    try:
        from torchao.prototype.quantization.int4 import Int4OpaqueTensor  # noqa: PLC0415
    except ImportError as error:
        purpose = "the export of int4 tensors"
        raise MissingExtraError("torchao (0.18)", "torchao", purpose) from error
    return Int4OpaqueTensor


def _hindrance(
    name: str, tensor: CodedTensor, modules: Mapping[str, nn.Module], aliases: Mapping[str, str]
) -> str:
    """Return why a quantized tensor stays in floats; "" where only its sizes may speak against."""
    if why := without_integers(tensor):
        return why
    names = [name, *(alias for alias, of in aliases.items() if of == name)]
    holders = [modules.get(held.removesuffix(".weight")) for held in names]
    if not all(isinstance(held, nn.Linear) for held in holders):
        return "something other than a linear layer holds it"
    return "" if tensor.dtype in _DTYPES else f"there are no kernels of {tensor.dtype}"


def _packed(kind: Any, tensor: GridTensor) -> tuple[Tensor, float] | str:
    """Return the weight, and by how much its steps were changed; or why there is none."""
    neurons = tensor.shape[0]
    found = integers_of(tensor)
    if found is None or found.bits > 4:
        return "its integers take more than 4 bits"
    group = next((size for size in _GROUPS if found.group % size == 0), 0)
    if not group:
        return f"its {found.group} inputs with one step are no multiple of 32"
    if neurons % _NEURONS:
        return f"its {neurons} neurons are no multiple of {_NEURONS}"
    return _tensor(kind, found, group, getattr(torch, tensor.dtype))


def _tensor(
    kind: Any, found: Integers, group: int, dtype: torch.dtype
) -> tuple[Tensor, float] | str:
    step = np.repeat(found.step, found.group // group, axis=1)
    scale = rounded(step, dtype)
    if scale is None:
        return f"its steps are beyond {dtype}"
    codes = torch.from_numpy(found.index + np.int32(_MIDDLE))
    data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    both = torch.stack([scale, torch.zeros_like(scale)], 2).transpose(0, 1).contiguous()
    return kind(data, both, [1, group], codes.shape), change(step, scale)
