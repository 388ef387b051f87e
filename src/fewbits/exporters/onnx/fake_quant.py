"""A network whose quantized parts are marked with operators of our own, for torch.export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...coded import (
    ActivationGrid,
    AffineTensor,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from ...compression.coded_model import load_into, unwrapped
from ...engine.activations.hooks import apply_grid, install_inputs
from ...engine.activations.integer_reference import whole_integers
from ...engine.network.copying import copied
from ...engine.network.naming import fitted
from .codebooks import index_bits, looked_up
from .processors import pairs_may_overflow

__all__ = ["Marked", "marked", "plain"]

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_TABLES = (nn.Linear, nn.Embedding)


@torch.library.custom_op("fewbits::on_grid", mutates_args=())
def on_grid(values: Tensor, clip: float, bits: int, signed: bool, zero: int) -> Tensor:
    """Put inputs on a grid; see SPEC.md, 2.4."""
    return apply_grid(values, ActivationGrid(bits, clip, signed, zero))


@on_grid.register_fake
def _(values: Tensor, clip: float, bits: int, signed: bool, zero: int) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("fewbits::from_grid", mutates_args=())
def from_grid(index: Tensor, step: Tensor, zero: Tensor, group: int) -> Tensor:
    """Return ``(index - zero) * step``, both for each entry of the first axis, or one.

    With a ``group`` of an index (rows, columns), both are (rows, columns / group).
    """
    if group:
        step, zero = (part.repeat_interleave(group, 1) for part in (step, zero))
        return (index.float() - zero.float()) * step
    ones = [1] * (index.dim() - 1)
    return (index.float() - zero.float().reshape(-1, *ones)) * step.reshape(-1, *ones)


@from_grid.register_fake
def _(index: Tensor, step: Tensor, zero: Tensor, group: int) -> Tensor:
    return torch.empty(index.shape, dtype=torch.float32)


@dataclass
class Marked:
    """The marked network, and what could not be marked.

    Attributes:
        network: in evaluation mode, on the CPU, of float32.
        dtypes: the other floating dtypes that the original has.
        widths: weight name to the bits that its integers take, 2, 4, 8 or 16.
        codebooks: weight name to the bits that its indices into a table take.
        floats: weight name to why it is exported in floats.
        wide: weights of 8 bits that a processor without VNNI may multiply wrongly when signed.
        unsigned: those of them that are unsigned, around 128.
        grouped: weights with steps for groups of columns.
    """

    network: nn.Module
    dtypes: frozenset[torch.dtype] = frozenset()
    widths: dict[str, int] = field(default_factory=dict)
    codebooks: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    wide: list[str] = field(default_factory=list)
    unsigned: list[str] = field(default_factory=list)
    grouped: list[str] = field(default_factory=list)


class _FromGrid(nn.Module):
    def __init__(self, index: Tensor, step: Tensor, group: int, *, unsigned: bool) -> None:
        super().__init__()
        self.index: Tensor
        self.step: Tensor
        self.zero: Tensor
        self.group = group
        if group:
            step = step.reshape(len(index), -1)
        middle = 128 if unsigned else 0
        dtype = torch.uint8 if unsigned else index.dtype
        self.register_buffer("index", (index.int() + middle).to(dtype))
        self.register_buffer("step", step)
        self.register_buffer("zero", torch.full_like(step, middle, dtype=dtype))

    def forward(self, weight: Tensor) -> Tensor:
        made: Tensor = torch.ops.fewbits.from_grid(self.index, self.step, self.zero, self.group)
        return made


class _OnGrid:
    def __init__(self, grid: ActivationGrid) -> None:
        self.grid = grid

    def __call__(self, values: Tensor) -> Tensor:
        grid = self.grid
        made: Tensor = torch.ops.fewbits.on_grid(
            values.float(), float(grid.clip), grid.bits, grid.signed, grid.zero
        )
        return made.to(values.dtype)  # a forward pass may cast


def marked(
    model: nn.Module,
    contents: Contents,
    *,
    unsigned: bool = False,
    tables: bool = False,
    narrowest: int = 4,
) -> Marked:
    """Return a float32 copy of ``model`` with the values of ``contents``, its integers marked.

    Steps are float32: with values of another dtype they make no sound graph.

    Args:
        model: a network of its architecture; it is not changed.
        contents: of the compressed network.
        unsigned: make the weights unsigned that would be wide.
        tables: mark embeddings on grids too, and those weights on grids that several modules share.
        narrowest: integers that the graph has, in bits.
    """
    network, dtypes = plain(model, contents)
    contents = fitted(contents, network)
    install_inputs(network, {name: _OnGrid(grid) for name, grid in contents.activations.items()})
    found = Marked(network, dtypes)
    modules = dict(network.named_modules())
    for name, tensor in contents.tensors.items():
        if isinstance(tensor, RawTensor):
            continue
        names = [name, *(alias for alias, of in contents.aliases.items() if of == name)]
        holders = [modules.get(held.rpartition(".")[0]) for held in names]
        why = _hindrance(tensor, holders, name, tables=tables)
        made: nn.Module | None = None
        if isinstance(tensor, CodebookTensor) and not why:
            made = _on_codebook(tensor, name, found, narrowest)
        elif isinstance(tensor, GridTensor) and not why:
            whole_rows = bool(contents.activations)
            made = _on_steps(
                tensor, name, found, narrowest, overflows=whole_rows, unsigned=unsigned
            )
        if why:
            found.floats[name] = why
        if made is not None:
            for module in filter(None, holders):
                parametrize.register_parametrization(module, "weight", made, unsafe=True)
    found.unsigned = found.wide if unsigned else []
    return found


def _on_codebook(
    tensor: CodebookTensor, name: str, found: Marked, narrowest: int
) -> nn.Module | None:
    bits = index_bits(tensor, narrowest)
    if not bits:
        found.floats[name] = "its indices and its codebook take as many bytes as its values"
        return None
    found.codebooks[name] = bits
    return looked_up(tensor, bits)


def _on_steps(
    tensor: GridTensor,
    name: str,
    found: Marked,
    narrowest: int,
    *,
    overflows: bool,
    unsigned: bool,
) -> nn.Module | None:
    """Return the parametrization of a weight on a grid, and note its form.

    ``overflows``: whether its products may be those of integers.
    """
    whole = _integers(tensor, narrowest)
    if whole is None:
        found.floats[name] = "its integers take more than 16 bits"
        return None
    index, step, width = whole
    found.widths[name] = width
    group = tensor.index.shape[1] if tensor.blocks > 1 else 0
    if group:
        found.grouped.append(name)
    # Runtimes multiply blocks in floats, where nothing overflows.
    wide = overflows and not group and width == 8 and pairs_may_overflow(index)
    if wide:
        found.wide.append(name)
    return _FromGrid(index, step, group, unsigned=wide and unsigned)


def plain(model: nn.Module, contents: Contents) -> tuple[nn.Module, frozenset[torch.dtype]]:
    """Return a float32 copy of ``model`` with the values of ``contents``, nothing marked.

    With it come the other floating dtypes that the original has. On the CPU, in evaluation mode.
    """
    network = copied(unwrapped(model)).cpu().eval()
    held = (*network.parameters(), *network.buffers())
    dtypes = frozenset(x.dtype for x in held if x.is_floating_point()) - {torch.float32}
    network.float()
    _without_cache(network)
    contents = fitted(contents, network)
    load_into(contents.tensors, contents.aliases, network, "the compressed network")
    return network, dtypes


def _without_cache(network: nn.Module) -> None:
    """Have a language model of transformers give logits alone, not the keys and values of texts."""
    for module in network.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False


def _hindrance(
    tensor: CodedTensor, holders: list[nn.Module | None], name: str, *, tables: bool
) -> str:
    """Return why a weight has no integer form in a graph; "" where it has one."""
    if isinstance(tensor, TransformTensor | AffineTensor):
        what = "in a basis" if isinstance(tensor, TransformTensor) else "on a grid with a minimum"
        return f"it is {what}, which graphs have no integer form for"
    # Runtimes look levels up once; they would unpack a table of integers in every call.
    tables = tables or isinstance(tensor, CodebookTensor)
    kinds = (*_LAYERS, nn.Embedding) if tables else _LAYERS
    if not isinstance(holders[0], kinds) or not name.endswith(".weight"):
        return "its layer is neither linear nor a convolution"
    if len(holders) > 1 and not (tables and all(isinstance(held, _TABLES) for held in holders)):
        return "it is tied to another weight"
    return _hindrance_of_steps(tensor) if isinstance(tensor, GridTensor) else ""


def _hindrance_of_steps(tensor: GridTensor) -> str:
    if tensor.layout is not None:
        return "its rows are not its first axis"
    if tensor.blocks > 1 and len(tensor.shape) != 2:
        return "groups of a neuron's inputs have steps, which graphs have for linear layers only"
    return ""


def _integers(tensor: GridTensor, narrowest: int) -> tuple[Tensor, Tensor, int] | None:
    """Return integers from zero up and down, their steps, and the bits they take."""
    index, step = whole_integers(tensor)
    low, high = (int(value) for value in index.aminmax()) if index.numel() else (0, 0)
    for width, dtype in ((2, torch.int8), (4, torch.int8), (8, torch.int8), (16, torch.int16)):
        if width >= narrowest and -(1 << (width - 1)) <= low and high < 1 << (width - 1):
            return index.to(dtype).reshape(tensor.shape), step, width
    return None
