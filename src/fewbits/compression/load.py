"""Read a file as a state dict, into a network, or one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from os import PathLike, fspath

import torch
from torch import Tensor, nn

from ..coded import ActivationGrid
from ..container import LazyTensors, keep_open, read_lazily, read_tensor, usable_threads
from ..engine.activations.hooks import check_inputs, load_inputs
from ..engine.layers.pack import to_torch
from ..engine.layers.transform_domain import into_transform_domain
from ..engine.network.naming import fit_names, fit_sites
from ..engine.paged.weight_store import WeightSpec, WeightStore
from ..errors import ConfigError, CorruptFileError, require
from .coded_model import load_into, state_dict, unwrapped
from .decoding import values_of

__all__ = ["decoder", "grids_for", "read_into", "read_lazily_into", "read_rows", "read_state_dict"]


def read_state_dict(
    path: str | PathLike[str], max_decoded_bytes: int | None, threads: int, transform_domain: bool
) -> dict[str, Tensor]:
    """Read every tensor of a file by name; see :func:`fewbits.load`."""
    require(not transform_domain, "transform_domain", "False without into=", True)
    opening = read_lazily(path, max_decoded_bytes=max_decoded_bytes, threads=threads)
    with opening as (tensors, aliases):
        return state_dict(tensors, aliases, usable_threads(threads))


@torch.inference_mode(False)  # new tensors of the network are ordinary ones
def read_into(
    path: str | PathLike[str],
    model: nn.Module,
    max_decoded_bytes: int | None,
    threads: int,
    transform_domain: bool,
) -> nn.Module:
    """Fill a network with the values of a file; see :func:`fewbits.load`."""
    opening = read_lazily(path, max_decoded_bytes=max_decoded_bytes, threads=threads)
    with opening as (tensors, aliases):
        grids = grids_for(tensors, aliases, model)
        if grids and transform_domain:
            raise ConfigError(
                "the file quantizes inputs of layers, which transform_domain=True would replace. "
                "Load it without transform_domain=True."
            )
        where = f"file {fspath(path)!r}"
        load_into(tensors, aliases, model, where, threads=usable_threads(threads))
        load_inputs(unwrapped(model), grids)
        if transform_domain:
            inner = unwrapped(model)
            names = fit_names(tensors, inner.state_dict())
            into_transform_domain(inner, tensors, names)
        return model


@torch.inference_mode(False)
def read_lazily_into(
    path: str | PathLike[str], model: nn.Module, max_decoded_bytes: int | None, threads: int
) -> nn.Module:
    """Give a network the weights of a file, which stay there until they are used.

    See :func:`fewbits.load`. The file is closed when the last of the weights is gone.
    """
    count = usable_threads(threads)
    with ExitStack() as stack:
        tensors, aliases = stack.enter_context(keep_open(path, max_decoded_bytes=max_decoded_bytes))
        grids = grids_for(tensors, aliases, model)
        tensors.codebooks()
        close = stack.pop_all().close
        try:
            store = WeightStore(decoder(tensors, fspath(path)), count, close)
        except BaseException:
            close()
            raise
    load_into(tensors, aliases, model, f"file {fspath(path)!r}", store=store)
    load_inputs(unwrapped(model), grids)
    return model


def grids_for(
    tensors: LazyTensors, aliases: Mapping[str, str], model: nn.Module
) -> Mapping[str, ActivationGrid]:
    """Return the grids of quantized inputs under the names of ``model``, which has them all."""
    grids = tensors.activations()
    if isinstance(model, nn.Module):
        grids = fit_sites(grids, unwrapped(model), (*tensors, *aliases))
        check_inputs(unwrapped(model), grids)
    return grids


def decoder(tensors: LazyTensors, path: str) -> Callable[[WeightSpec, int], Tensor]:
    """Return a function that decodes a weight as the network has it, on some threads."""

    def decode(spec: WeightSpec, threads: int) -> Tensor:
        try:
            # Whatever mode the forward pass is in, the values serve later ones too.
            with torch.inference_mode(False), torch.no_grad():
                return spec.convert(values_of(tensors, spec.name, threads))
        except (CorruptFileError, OSError) as error:
            raise CorruptFileError(
                f"{path}: the weight {spec.name!r}, which was loaded lazily, cannot be read any "
                f"more: {error}"
            ) from error

    return decode


def read_rows(
    path: str | PathLike[str],
    name: str,
    rows: tuple[int, int] | None,
    max_decoded_bytes: int | None,
) -> Tensor:
    """Read one tensor of a file, or some of its rows; see :func:`fewbits.load_tensor`."""
    return to_torch(read_tensor(path, name, rows, max_decoded_bytes=max_decoded_bytes))
