"""Copy a network, even if a forward pass left computed tensors on its modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import ModelError

__all__ = ["attributes", "copied", "deepcopied"]


_REMOVED = "Remove that attribute first (del), or keep it outside of the module."
_PLAIN = "module.{0}.detach().as_subclass(torch.Tensor)"
_BUFFER = f"Replace it by a plain tensor of its values: module.{{0}} = {_PLAIN}."
_PARAMETER = (
    f"Replace it by a plain tensor of its values: module.{{0}} = torch.nn.Parameter({_PLAIN})."
)


def copied(network: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return an independent copy, with all modules in their current modes.

    Tensors that a forward pass with gradients left in attributes are copied without their history,
    which belongs to that pass. ``memo`` is that of ``copy.deepcopy``: objects by the identity of
    the one that they stand for in the copy.

    Raises:
        ModelError: an attribute cannot be copied; names it and its module.
    """
    try:
        return deepcopied(network, {} if memo is None else memo)
    except Exception as error:  # copying the user's objects may raise anything
        raise ModelError(_message(network, error)) from error


def deepcopied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Call ``copy.deepcopy``, copying tensors with gradient history without it."""
    with _WithoutHistory():
        return copy.deepcopy(network, memo)


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's attributes other than submodules, parameters, buffers and hooks."""
    for name, value in vars(module).items():
        if name not in ("_modules", "_parameters", "_buffers") and "hook" not in name:
            yield name, value


class _WithoutHistory(TorchFunctionMode):
    """Handles ``copy.deepcopy`` of tensors that torch refuses: non-leaf and sparse-row tensors."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, or copy only the values."""
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if not tensor.is_leaf or tensor.layout not in (torch.strided, torch.sparse_coo):
                trains = tensor.is_leaf and tensor.requires_grad
                twin = tensor.detach().clone().requires_grad_(trains)
                return memo.setdefault(id(tensor), twin)
        return func(*args, **(kwargs or {}))


def _message(network: nn.Module, error: Exception) -> str:
    culprit = _culprit(network)
    if culprit is None:
        cause = f"{type(error).__name__}: {error}"
        return (
            f"the network cannot be copied ({cause}), and compressing must not change the "
            "original. Give its class a working __deepcopy__, or compress a newly built network "
            "loaded from a state dict."
        )
    where, raised, remedy = culprit
    return (
        f"the network cannot be copied because of {where} ({type(raised).__name__}: {raised}); "
        f"compressing must not change the original. {remedy}"
    )


def _culprit(network: nn.Module) -> tuple[str, Exception, str] | None:
    """Return what cannot be copied by itself, what it raises, and the remedy."""
    for path, module in network.named_modules():
        owner = f"module {path!r} ({type(module).__name__})" if path else type(module).__name__
        for what, held, remedy in (
            ("parameter", module._parameters, _PARAMETER),
            ("buffer", module._buffers, _BUFFER),
            ("attribute", vars(module), _REMOVED),
        ):
            for name, value in held.items():
                if name in ("_modules", "_parameters", "_buffers"):
                    continue
                try:
                    with _WithoutHistory():
                        copy.deepcopy(value)
                except Exception as error:
                    where = f"{what} {name!r} of {owner}, a {type(value).__name__}"
                    return where, error, remedy.format(name)
    return None
