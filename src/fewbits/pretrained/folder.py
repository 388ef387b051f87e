"""Write a folder that ``from_pretrained`` reads: configuration, weights, tokenizer, model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

from ..coded import JSONValue, SizeReport
from ..container import wrapper
from ..errors import ConfigError, is_number, require
from ..files.atomic_write import replacing, write
from .card import Card, base_model_of

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "CodedFolder",
    "files_of",
    "quantization_settings",
    "write_folder",
]

CONFIG = "config.json"
# Not model.safetensors: a process that has not imported fewbits then finds no weights and says so.
# transformers only warns of an unknown quantization, and would go on with random weights.
WEIGHTS = "fewbits.safetensors"
METHOD = "fewbits"
_GENERATION = "generation_config.json"
_OTHER_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


@dataclass(frozen=True, kw_only=True)
class CodedFolder:
    """What a folder holds.

    Attributes:
        files: JSON files of the network by name; ``config.json`` is among them.
        write_weights: writes the fewbits file to an open file and returns its length.
        measure: returns the itemised size of the open file that was written.
        metadata: metadata of the fewbits file.
        processors: tokenizers, image processors and the like, which write their own files.
        lazy: whether the weights stay in the file until they are used.
        metrics: measurements for the model card.
        base_model: name on the Hub of the network that was compressed; by default as the
            configuration says.
    """

    files: Mapping[str, Mapping[str, Any]]
    write_weights: Callable[[BinaryIO], int]
    measure: Callable[[BinaryIO], SizeReport]
    metadata: Mapping[str, JSONValue]
    processors: Iterable[Any] = ()
    lazy: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None


def quantization_settings(lazy: bool) -> dict[str, Any]:
    """Return the ``quantization_config`` of a folder."""
    return {"quant_method": METHOD, "lazy": lazy}


def files_of(network: object) -> dict[str, dict[str, Any]]:
    """Return the JSON files that describe how to build a network, by name; empty if unknown.

    Understands networks of transformers, and those of ``huggingface_hub.ModelHubMixin``, whose
    configuration is the arguments of their class.
    """
    own = getattr(network, "_hub_mixin_config", None)
    if isinstance(own, dict):
        return {CONFIG: _without_quantization(own)}
    config = _as_json(getattr(network, "config", None))
    if config is None:
        return {}
    dtype = str(getattr(network, "dtype", "")).removeprefix("torch.")
    config["architectures"] = [type(network).__name__]
    if dtype:
        config["dtype"] = dtype
    name = getattr(getattr(network, "config", None), "_name_or_path", None)
    if isinstance(name, str) and name and not Path(name).exists():
        config["_name_or_path"] = name
    files = {CONFIG: _without_quantization(config)}
    generation = _as_json(getattr(network, "generation_config", None))
    return files if generation is None else {**files, _GENERATION: generation}


def write_folder(path: str | PathLike[str], content: CodedFolder) -> SizeReport:
    """Write a folder, file by file, and return the itemised size of its fewbits file.

    Raises:
        ConfigError: the configuration is missing or no JSON, a processor cannot save itself, or the
            folder has other weights, which would be loaded in place of these.
        OSError: the system cannot write there.
    """
    _check(content)
    folder = Path(path)
    config = {**content.files[CONFIG], "quantization_config": quantization_settings(content.lazy)}
    texts = {name: _json(name, value) for name, value in {**content.files, CONFIG: config}.items()}
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({other.name for rule in _OTHER_WEIGHTS for other in folder.glob(rule)})
    if others:
        raise ConfigError(
            f"the folder {fspath(path)!r} already has other weights ({', '.join(others)}), which "
            "programs without fewbits would load. Remove them, or choose another folder."
        )
    for processor in content.processors:
        processor.save_pretrained(str(folder))
    with replacing(folder / WEIGHTS) as file:
        file.write(wrapper(0))
        size = content.write_weights(file)
        file.seek(0)
        file.write(wrapper(size))
        report = content.measure(file)
    for name, text in texts.items():
        write(text.encode(), folder / name)
    named = content.base_model
    card = Card(
        name=folder.resolve().name,
        config=config,
        report=report,
        weights_bytes=len(wrapper(0)) + size,
        metadata=content.metadata,
        metrics=content.metrics,
        base_model=base_model_of(config) if named is None else named,
    )
    write(card.text().encode(), folder / "README.md")
    return report


def _check(content: CodedFolder) -> None:
    if CONFIG not in content.files:
        raise ConfigError(
            "the configuration of the network is not known, and a folder needs it. Pass the "
            "network (a model of transformers, or of a class with fewbits.hub.Mixin) as model=, "
            "or its settings as config={...}."
        )
    for processor in content.processors:
        saves = callable(getattr(processor, "save_pretrained", None))
        require(saves, "processors", "objects with a method save_pretrained", processor)
    for name, value in content.metrics.items():
        require(isinstance(name, str) and is_number(value), f"metrics[{name!r}]", "a number", value)


def _json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be plain JSON values: {error}.") from error


def _as_json(config: object) -> dict[str, Any] | None:
    """Return a configuration of transformers as JSON values; None if it is not one, or has none."""
    to_json = getattr(config, "to_json_string", None)
    if not callable(to_json):
        return None
    try:
        value = json.loads(to_json())
    except (TypeError, ValueError):  # values of the user's that are no JSON; compressing goes on
        return None
    return value if isinstance(value, dict) else None


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}
