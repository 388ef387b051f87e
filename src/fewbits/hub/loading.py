"""Load a network from a folder of :meth:`fewbits.CodedModel.save_pretrained`, or from the Hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn

from ..compression.load import read_into, read_lazily_into
from ..errors import ConfigError, MissingExtraError, SourceError, did_you_mean, require, shorten
from ..files.json_values import read_json, read_text
from ..pretrained import CONFIG, WEIGHTS, hub_client

__all__ = ["Source", "fill", "from_pretrained"]

_DOWNLOAD = ("cache_dir", "force_download", "local_files_only")
_NO_ARGUMENT = "quantization_config"  # in config.json, beside the arguments of a class


class Source:
    """A folder, or a repository on the Hub, from which files are read.

    Args:
        name: path of a folder, or "owner/name".
        settings: arguments of ``huggingface_hub.hf_hub_download``, such as revision and token.
    """

    def __init__(self, name: str | PathLike[str], **settings: Any) -> None:
        self.name = fspath(name)
        self._settings = {key: value for key, value in settings.items() if value is not None}

    def file(self, name: str) -> Path:
        """Return the path of one of its files, which is downloaded if necessary.

        Raises:
            SourceError: there is no such file.
        """
        folder = Path(self.name)
        if folder.is_dir():
            if not (folder / name).is_file():
                raise SourceError(
                    f"the folder {self.name!r} has no file {name}. Name a folder that "
                    "coded.save_pretrained(folder) wrote; a .fewbits file is read by fewbits.load."
                )
            return folder / name
        if folder.exists() or self.name.count("/") != 1 or folder.is_absolute():
            raise SourceError(
                f"{self.name!r} is neither a folder nor the name of a repository, such as "
                "'someone/network'."
            )
        client: Any = hub_client(f"loading {self.name!r} from the Hub")
        try:
            return Path(client.hf_hub_download(self.name, name, **self._settings))
        except client.errors.EntryNotFoundError as error:
            raise SourceError(
                f"the repository {self.name!r} has no file {name}: it was not written by fewbits. "
                f"({error})"
            ) from error

    def config(self) -> dict[str, Any]:
        """Return its configuration, which must be one of fewbits.

        Raises:
            SourceError: there is none, or it is no JSON object.
            ConfigError: its weights are those of another program.
        """
        path = self.file(CONFIG)
        try:
            config = read_json(read_text(path))
        except ConfigError as error:
            raise SourceError(f"{path}: {error}") from error
        if not isinstance(config, dict):
            raise SourceError(f"{path} must be a JSON object. Got {shorten(config)} instead.")
        found = config.get("quantization_config")
        settings: dict[str, Any] = found if isinstance(found, dict) else {}
        method = settings.get("quant_method")
        if method != "fewbits":
            kind = f"quantized by {method!r}" if method else "not quantized"
            raise ConfigError(
                f"the weights of {self.name!r} are {kind}, and fewbits.from_pretrained reads those "
                "of fewbits only. Load it by AutoModel.from_pretrained of transformers."
            )
        lazy = settings.get("lazy", False)
        require(isinstance(lazy, bool), f"'lazy' in {path}", "true or false", lazy)
        return config


def from_pretrained(
    folder: str | PathLike[str],
    model_class: Callable[..., nn.Module] | None = None,
    *,
    lazy: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> nn.Module:
    """Load a network from a folder, or from the Hugging Face Hub.

    Args:
        folder: a folder that :meth:`fewbits.CodedModel.save_pretrained` wrote, or the name of a
            repository, such as "someone/network".
        model_class: the class of the network. By default the class of transformers that the
            configuration names. Other classes are called with the configuration as arguments.
        lazy: whether weights stay in the file until they are used, as for :func:`fewbits.load`; by
            default as the configuration says.
        revision: branch, tag or commit on the Hub.
        token: access token; by default the one of ``hf auth login``.
        **settings: for transformers, further arguments of its ``from_pretrained``, such as dtype
            and device_map; for other classes, arguments that replace those of the configuration.
            ``cache_dir``, ``force_download`` and ``local_files_only`` are for downloads.

    Returns:
        The network in eval mode. Code from the Hub is never run.

    Raises:
        SourceError: no such folder or repository, or files are missing.
        ConfigError: the folder is not one of fewbits, or its class is not known.
        ModelError: the weights are those of another network.
        CorruptFileError: the weights are damaged.
        MissingExtraError: transformers or huggingface_hub is needed and not installed.
    """
    require(not settings.get("trust_remote_code"), "trust_remote_code", "False", True)
    download = {key: settings.get(key) for key in _DOWNLOAD}
    source = Source(folder, revision=revision, token=token, **download)
    config = source.config()
    wanted = config["quantization_config"].get("lazy", False) if lazy is None else lazy
    if model_class is None:
        model_class = _named_class(config, source.name)
    if hasattr(model_class, "from_config") or hasattr(model_class, "config_class"):
        known = {"revision": revision, "token": token, **settings}
        return _by_transformers(model_class, source.name, wanted, known)
    arguments = {key: value for key, value in config.items() if key != _NO_ARGUMENT}
    arguments |= {key: value for key, value in settings.items() if key not in _DOWNLOAD}
    try:
        model = model_class(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{_name(model_class)} cannot be called with the configuration of {source.name!r} as "
            f"arguments: {error}. Pass a function that builds the network of these arguments: "
            f"{shorten(arguments)}."
        ) from error
    return fill(model, source, wanted).eval()


def fill(model: nn.Module, source: Source, lazy: bool) -> nn.Module:
    """Fill a network with the weights of a folder."""
    path = source.file(WEIGHTS)
    if lazy:
        return read_lazily_into(path, model, None, 0)
    return read_into(path, model, None, 0, transform_domain=False)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtraError("transformers", "hf", "loading this network") from error


def _named_class(config: Mapping[str, Any], source: str) -> Callable[..., nn.Module]:
    """Return the class of transformers that a configuration names."""
    names = config.get("architectures")
    if "model_type" not in config or not isinstance(names, list) or not names:
        raise ConfigError(
            f"the configuration of {source!r} names no class of transformers. Pass the class of "
            "the network: fewbits.from_pretrained(folder, YourNetwork)."
        )
    library, name = _transformers(), names[0]
    found = getattr(library, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        known = [word for word in dir(library) if word.startswith(str(name)[:4])]
        raise ConfigError(
            f"the configuration of {source!r} names the class {shorten(name)}, which transformers "
            f"{library.__version__} does not have.{did_you_mean(str(name), known)} Pass the class "
            "of the network, or update transformers; code from the Hub is not run."
        )
    return found


def _by_transformers(loader: Any, source: str, lazy: bool, settings: dict[str, Any]) -> nn.Module:
    library = _transformers()
    settings = {key: value for key, value in settings.items() if value is not None}
    if not isinstance(settings.get("config"), library.PreTrainedConfig):
        about = {key: settings[key] for key in ("revision", "token", *_DOWNLOAD) if key in settings}
        settings["config"] = library.AutoConfig.from_pretrained(source, **about)
    settings["config"].quantization_config = {"quant_method": "fewbits", "lazy": lazy}
    model: nn.Module = loader.from_pretrained(source, **settings)
    return model


def _name(builder: object) -> str:
    return getattr(builder, "__name__", type(builder).__name__)
