"""Read a file as a state dict, into a network, or one tensor at a time."""

from __future__ import annotations

from os import PathLike, fspath

from torch import Tensor, nn

from ..container import read_lazily, read_tensor
from ..engine.activations.hooks import check_inputs, load_inputs
from ..engine.layers.pack import to_torch
from ..engine.layers.transform_domain import into_transform_domain
from ..engine.network.naming import fit_names, fit_sites
from ..errors import ConfigError, require
from .coded_model import load_into, state_dict, unwrapped

__all__ = ["read_into", "read_rows", "read_state_dict"]


def read_state_dict(
    path: str | PathLike[str], max_decoded_bytes: int | None, threads: int, transform_domain: bool
) -> dict[str, Tensor]:
    """Read every tensor of a file by name; see :func:`fewbits.load`."""
    require(not transform_domain, "transform_domain", "False without into=", True)
    opening = read_lazily(path, max_decoded_bytes=max_decoded_bytes, threads=threads)
    with opening as (tensors, aliases):
        return state_dict(tensors, aliases)


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
        grids = tensors.activations()
        if isinstance(model, nn.Module):
            grids = fit_sites(grids, unwrapped(model), (*tensors, *aliases))
            check_inputs(unwrapped(model), grids)
        if grids and transform_domain:
            raise ConfigError(
                "the file quantizes inputs of layers, which transform_domain=True would replace. "
                "Load it without transform_domain=True."
            )
        load_into(tensors, aliases, model, f"file {fspath(path)!r}")
        load_inputs(unwrapped(model), grids)
        if transform_domain:
            inner = unwrapped(model)
            names = fit_names(tensors, inner.state_dict())
            into_transform_domain(inner, tensors, names)
        return model


def read_rows(
    path: str | PathLike[str],
    name: str,
    rows: tuple[int, int] | None,
    max_decoded_bytes: int | None,
) -> Tensor:
    """Read one tensor of a file, or some of its rows; see :func:`fewbits.load_tensor`."""
    return to_torch(read_tensor(path, name, rows, max_decoded_bytes=max_decoded_bytes))
