"""``module:callable``: your own model or data, importable from the current directory."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import FewbitsError, SourceError, did_you_mean
from .base.dataset import SPLITS, DataSource, StreamSplit
from .base.registries import DATA, MODELS
from .base.spec import Spec, module_of_file

__all__ = ["load_callable", "module_data", "module_model", "module_spec"]


@MODELS.register("module")
def module_model(spec: Spec, pretrained: bool) -> nn.Module:
    """Call ``module:callable`` without arguments; it returns a network (or is one)."""
    spec.parsed({})
    found = load_callable(spec)
    model = found if isinstance(found, nn.Module) else _call(found, spec)
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"model source {spec.text!r} returned {type(model).__name__}; expected torch.nn.Module."
        )
    return model


@DATA.register("module")
def module_data(spec: Spec) -> DataSource:
    """Call ``module:callable`` without arguments; it returns data in one of these forms.

    - a :class:`DataSource`;
    - a dict of loaders with any of the keys "train", "calibration", "selection" and "test";
    - a pair ``(train, test)`` of loaders;
    - one loader, used as every split: either for calibration *or* for evaluation.

    A loader is any re-iterable of batches ``(inputs, labels)``, such as a ``DataLoader``. A
    generator can be read only once: return a list, or a function that makes a new generator.
    """
    spec.parsed({})
    found = load_callable(spec)
    data = found if isinstance(found, (DataSource, nn.Module)) else _call(found, spec)
    if isinstance(data, DataSource):
        return data
    if isinstance(data, nn.Module):
        raise SourceError(
            f"data source {spec.text!r} gave a network ({type(data).__name__}); expected a loader "
            "of (inputs, labels) batches, or (train, test). Pass the network as MODEL."
        )
    if isinstance(data, Mapping) and set(data) & set(SPLITS):
        unknown = [str(name) for name in data if name not in SPLITS]
        if unknown:
            raise SourceError(f"data source {spec.text!r}: unknown split {unknown[0]!r}.")
        parts = {str(name): _split(value, spec) for name, value in data.items()}
        train, test, calibration = map(parts.get, ("train", "test", "calibration"))
        return DataSource(spec.text, train, test, calibration, selection=parts.get("selection"))
    if isinstance(data, tuple) and len(data) == 2:
        train, test = (_split(part, spec) for part in data)
        return DataSource(spec.text, train, test)
    only = _split(data, spec)
    return DataSource(spec.text, only, only, one_loader=True)


def module_spec(spec: Spec) -> Spec:
    """Return the spec of ``module:callable``, whose module was parsed as a scheme."""
    if spec.scheme in ("", "module"):
        return spec
    return replace(spec, scheme="module", target=f"{spec.scheme}:{spec.target}")


def load_callable(spec: Spec) -> Any:
    """Import the module and return the attribute.

    Raises:
        SourceError: no such module or attribute, or the module's own code failed (says where).
    """
    module_name, _, attribute = spec.target.partition(":")
    if not attribute:
        raise SourceError(
            f"source {spec.text!r}: expected 'module:callable', for example 'net:build'."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise SourceError(_import_message(spec, module_name, error)) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            raise SourceError(
                f"source {spec.text!r}: {found.__name__} has no {part!r}."
                + did_you_mean(part, names)
            )
        found = getattr(found, part)
    return found


def _import_message(spec: Spec, module_name: str, error: Exception) -> str:
    absent = isinstance(error, ModuleNotFoundError) and error.name is not None
    if absent and f"{module_name}.".startswith(f"{error.name}."):  # type: ignore[attr-defined]
        scheme = spec.text.partition(":")[0]
        return (
            f"source {spec.text!r}: there is no module {module_name!r} in {Path.cwd()} or among "
            "the installed packages. Run from the folder that contains it, or set PYTHONPATH."
            + (module_of_file(spec.target) or did_you_mean(scheme, dict.fromkeys([*MODELS, *DATA])))
        )
    return f"source {spec.text!r}: importing {module_name!r} failed: {_describe(error)}"


def _call(found: Any, spec: Spec) -> Any:
    if not callable(found):
        raise SourceError(
            f"source {spec.text!r} is a {type(found).__name__}; expected a function or class that "
            "can be called without arguments."
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise SourceError(
            f"source {spec.text!r} cannot be called without arguments ({error}). Write a small "
            "function that calls it with your arguments, and name that instead."
        ) from None
    except ValueError:
        pass  # some builtins have no signature: just try
    try:
        return found()
    except FewbitsError:
        raise
    except Exception as error:
        raise SourceError(f"calling {spec.text!r} failed: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


def _split(value: Any, spec: Spec) -> StreamSplit:
    if callable(value) and not isinstance(value, Iterable):
        return StreamSplit(value)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise SourceError(
            f"data source {spec.text!r} gave a {type(value).__name__}; expected a DataSource, a "
            "loader of (inputs, labels) batches, a dict of loaders, or (train, test)."
        )
    if iter(value) is value:
        raise SourceError(
            f"data source {spec.text!r} gave a {type(value).__name__}, which can be read only "
            "once. Return a list, a DataLoader, or a function that makes a new generator."
        )
    return StreamSplit(lambda: value)
