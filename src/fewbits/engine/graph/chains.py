"""Chains: pairs of layers in which the second is the only reader of the first one's output.

Neurons between them can be permuted or removed without changing the function, because only
elementwise activations, pooling, dropout, flattening and normalizations in evaluation mode lie in
between. Chains are found in the graph traced by ``torch.fx``; untraceable networks have none.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..batchnorm.fold import is_batchnorm
from ..network.copying import copied

__all__ = ["Chain", "Chains", "find_chains"]

Step: TypeAlias = Callable[[Tensor], Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
_ALIKE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign),
    *(nn.LogSigmoid, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_ALIKE_FUNCTIONS = frozenset(
    (
        *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu),
        *(F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardtanh, F.hardswish),
        *(F.hardsigmoid, F.softplus, F.softsign, F.logsigmoid),
    )
)
_ALIKE_METHODS = frozenset(("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "contiguous"))
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_MAX_FUNCTIONS = frozenset((F.max_pool1d, F.max_pool2d, F.max_pool3d))
_MEAN_FUNCTIONS = frozenset((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d))
_ADAPTIVE_FUNCTIONS = frozenset(
    (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
)


@dataclass(frozen=True)
class Chain:
    """A layer and the layer that reads its output.

    Attributes:
        layer: name of the module whose neurons are read.
        reader: name of the module that reads them; its columns are in the order of the neurons,
            each with as many as belong together (taps, positions of a flattened image).
        norms: names of the normalizations in between, per neuron.
        steps: operations in between, applied to a value of a neuron that is constant everywhere.
        borders: whether padding changes such a value at borders if it is not zero.
    """

    layer: str
    reader: str
    norms: tuple[str, ...]
    steps: tuple[Step, ...]
    borders: bool


@dataclass(frozen=True)
class Chains:
    """The chains of a network in the order of its graph, or why they are unknown."""

    found: tuple[Chain, ...]
    reason: str = ""


def find_chains(model: nn.Module) -> Chains:
    """Find the chains of ``model``, whose steps compute as in evaluation mode.

    Only layers with a single call and a single reader count, without groups, hooks or computed
    tensors. The network itself is not called: a copy is traced.
    """
    try:
        traced = copied(model).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = fx.Tracer().trace(traced)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        first = (str(error).splitlines() or [""])[0]
        return Chains((), f"the network cannot be traced ({type(error).__name__}: {first})")
    network = _Network(dict(traced.named_modules()), graph)
    chains = (network.chain(node) for node in graph.nodes)
    return Chains(tuple(chain for chain in chains if chain is not None))


@dataclass
class _Path:
    """State of the walk from a layer to its reader."""

    spatial: int
    norms: list[str]
    steps: list[Step]
    flat: bool = False
    borders: bool = False


class _Network:
    """A traced graph with its modules."""

    def __init__(self, modules: Mapping[str, nn.Module], graph: fx.Graph) -> None:
        self.modules = modules
        targets = [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")]
        self.calls = Counter(targets)
        self.read = {target.rpartition(".")[0] for target in targets}

    def chain(self, start: fx.Node) -> Chain | None:
        layer = self._layer(start)
        if layer is None:
            return None
        path = _Path(len(getattr(layer, "kernel_size", ())), [], [])
        node = start
        while True:
            following = _only_user(node)
            if following is None:
                return None
            reader = self._layer(following)
            if reader is not None:
                break
            if not self._passes(following, path):
                return None
            node = following
        if not _fits(layer, reader, path):
            return None
        borders = path.borders or _pads(reader)
        names = str(start.target), str(following.target)
        return Chain(*names, tuple(path.norms), tuple(path.steps), borders)

    def _module(self, node: fx.Node) -> nn.Module | None:
        """Return the module called here and nowhere else, if it has no hooks."""
        name = str(node.target)
        if node.op != "call_module" or self.calls[name] != 1 or name in self.read:
            return None
        module = self.modules.get(name)
        if module is None or module._forward_hooks or module._forward_pre_hooks:
            return None
        return module if len(node.args) == 1 and not node.kwargs else None

    def _layer(self, node: fx.Node) -> Any:
        module = self._module(node)
        if type(module) not in _LAYERS or getattr(module, "groups", 1) != 1:
            return None
        return module if isinstance(module._parameters.get("weight"), Tensor) else None  # type: ignore[union-attr]

    def _passes(self, node: fx.Node, path: _Path) -> bool:
        """Return whether ``node`` keeps neurons apart, recording its effect on the path."""
        if node.op == "call_module":
            return self._module_passes(node, path)
        rest = (*node.args[1:], *node.kwargs.values())
        if node.op == "call_function" and node.target in _ALIKE_FUNCTIONS:
            path.steps.append(
                partial(_call_function, node.target, node.args[1:], dict(node.kwargs))
            )
            return not any(isinstance(value, fx.Node) for value in rest)
        if node.op == "call_method" and node.target in _ALIKE_METHODS and not rest:
            if node.target != "contiguous":
                path.steps.append(partial(_call_method, str(node.target)))
            return True
        return _drops(node) or _pools(node, path) or _flattens(node, path)

    def _module_passes(self, node: fx.Node, path: _Path) -> bool:
        module = self._module(node)
        if module is None:
            return False
        single = isinstance(module, nn.PReLU) and module.num_parameters == 1
        if type(module) in _ALIKE or single:
            path.steps.append(module)
            return True
        if type(module) in _POOLS:
            path.borders |= _padded_mean(module)
            plain = getattr(module, "divisor_override", None) is None
            return plain and bool(path.spatial) and not path.flat
        if is_batchnorm(module) and not path.flat:
            path.norms.append(str(node.target))
            path.steps.append(module)
            return True
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            path.flat = True
            return True
        return False


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the only reader of the values of ``node``; reading its shape does not count."""
    users = [user for user in node.users if not _asks_shape(user)]
    if len(users) != 1 or not users[0].args or users[0].args[0] is not node:
        return None
    inputs = [value for value in users[0].all_input_nodes if value is node]
    return users[0] if len(inputs) == 1 else None


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"


def _drops(node: fx.Node) -> bool:
    """Return whether this is a dropout that is off in evaluation mode."""
    if node.op != "call_function" or node.target not in (F.dropout, F.dropout2d, F.dropout3d):
        return False
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    return training is False


def _pools(node: fx.Node, path: _Path) -> bool:
    """Return whether this pools each channel separately and keeps constants."""
    if node.op != "call_function" or not path.spatial or path.flat:
        return False
    if node.target in _MEAN_FUNCTIONS:
        return len(node.args) <= 3 and set(node.kwargs) <= {"kernel_size", "stride"}
    return node.target in _MAX_FUNCTIONS or node.target in _ADAPTIVE_FUNCTIONS


def _flattens(node: fx.Node, path: _Path) -> bool:
    """Return whether this flattens all axes except the first, or averages over positions."""
    rest: tuple[Any, ...] = tuple(node.args[1:])
    kwargs: dict[str, Any] = dict(node.kwargs)
    name = node.target if node.op == "call_method" else ""
    if name == "flatten" or node.target is torch.flatten:
        start = kwargs.pop("start_dim", rest[0] if rest else 0)
        end = kwargs.pop("end_dim", rest[1] if len(rest) > 1 else -1)
        fits = bool((start, end) == (1, -1)) and not kwargs
    elif name in ("view", "reshape"):
        fits = len(rest) == 2 and rest[1:] == (-1,) and _is_batch_size(rest[0], node.args[0])
    elif name == "mean" or node.target is torch.mean:
        axes = kwargs.pop("dim", rest[0] if rest else None)
        known = (tuple(range(2, 2 + path.spatial)), tuple(range(-path.spatial, 0)))
        whole = isinstance(axes, (tuple, list)) and tuple(axes) in known
        fits = whole and bool(path.spatial) and not path.flat and not kwargs and len(rest) <= 1
    else:
        return False
    path.flat = path.flat or fits
    return fits


def _is_batch_size(value: Any, of: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method":
        return value.target == "size" and tuple(value.args) == (of, 0)
    if value.target is not operator.getitem or value.args[1] != 0:
        return False
    shape = value.args[0]
    return isinstance(shape, fx.Node) and _asks_shape(shape) and shape.args[0] is of


def _fits(layer: Any, reader: Any, path: _Path) -> bool:
    """Return whether the columns of ``reader`` are the neurons of ``layer``, in order."""
    if isinstance(layer, nn.Linear):
        return isinstance(reader, nn.Linear) and reader.in_features == layer.out_features
    if isinstance(reader, nn.Linear):
        return path.flat and reader.in_features % layer.out_channels == 0
    same = len(reader.kernel_size) == path.spatial and reader.in_channels == layer.out_channels
    return same and not path.flat


def _pads(reader: Any) -> bool:
    padding = getattr(reader, "padding", 0)
    zeros = getattr(reader, "padding_mode", "zeros") == "zeros"
    none = padding == "valid" or (not isinstance(padding, str) and not _any(padding))
    return zeros and not none


def _padded_mean(module: nn.Module) -> bool:
    averages = isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))
    return averages and _any(getattr(module, "padding", 0))


def _any(padding: Any) -> bool:
    return any(padding) if isinstance(padding, (tuple, list)) else bool(padding)


def _call_function(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor
) -> Tensor:
    result: Tensor = function(x, *args, **{k: v for k, v in kwargs.items() if k != "inplace"})
    return result


def _call_method(method: str, x: Tensor) -> Tensor:
    result: Tensor = getattr(x, method)()
    return result
