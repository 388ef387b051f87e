"""Save and load networks of your own classes, on the protocol of ``huggingface_hub``."""

from __future__ import annotations

import inspect
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from typing_extensions import Self

from ..compression.coded_model import CodedModel
from ..errors import ConfigError
from ..pretrained import hub_client
from .loading import Source, fill

if TYPE_CHECKING:

    class ModelHubMixin:
        """What is used of the class in huggingface_hub."""

        def __init_subclass__(cls, **settings: Any) -> None: ...
        @classmethod
        def from_pretrained(cls, name: str | PathLike[str], **settings: Any) -> Self: ...

else:
    ModelHubMixin = hub_client("fewbits.hub.Mixin").ModelHubMixin

__all__ = ["Mixin"]


class Mixin(ModelHubMixin):
    """Gives ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` to a class of networks.

    ::

        class Net(torch.nn.Module, fewbits.hub.Mixin):
            def __init__(self, width: int = 32): ...

        coded = fewbits.compress(net, "nearest")
        net.save_pretrained("folder", coded)
        net = Net.from_pretrained("folder")

    The configuration is the arguments with which the network was built, as far as they are JSON
    values; others must have defaults, or be passed to ``from_pretrained`` again.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        """Check the arguments of the class, and let huggingface_hub note them."""
        if "lazy" in inspect.signature(cls.__init__).parameters:
            raise ConfigError(
                f"{cls.__name__} has an argument 'lazy', which from_pretrained(..., lazy=) of "
                "fewbits.hub.Mixin takes for itself. Give it another name."
            )
        super().__init_subclass__(**settings)

    def save_pretrained(
        self, folder: str | PathLike[str], coded: CodedModel | None = None, **settings: Any
    ) -> int:
        """Write a folder with the compressed weights; see :meth:`CodedModel.save_pretrained`.

        Args:
            folder: made if it does not exist.
            coded: this network as compressed by :func:`fewbits.compress`.
            **settings: of :meth:`CodedModel.save_pretrained`.
        """
        return self._checked(coded).save_pretrained(folder, self._network(), **settings)

    def push_to_hub(self, repo_id: str, coded: CodedModel | None = None, **settings: Any) -> str:
        """Upload the compressed weights; see :meth:`CodedModel.push_to_hub`.

        Args:
            repo_id: the repository, such as "someone/network".
            coded: this network as compressed by :func:`fewbits.compress`.
            **settings: of :meth:`CodedModel.push_to_hub`.
        """
        return self._checked(coded).push_to_hub(repo_id, self._network(), **settings)

    def _network(self) -> nn.Module:
        if not isinstance(self, nn.Module):
            raise ConfigError(
                f"{type(self).__name__} must be a torch.nn.Module too: class {type(self).__name__}"
                "(torch.nn.Module, fewbits.hub.Mixin)."
            )
        return self

    def _checked(self, coded: CodedModel | None) -> CodedModel:
        if not isinstance(coded, CodedModel):
            raise ConfigError(
                "save_pretrained and push_to_hub of fewbits.hub.Mixin write compressed weights. "
                "Compress the network first: coded = fewbits.compress(net, ...), and pass coded. "
                f"Got {type(coded).__name__} instead."
            )
        return coded

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        lazy: bool | None = None,
        **arguments: Any,
    ) -> Self:
        """Build the network and fill it; called by ``from_pretrained`` of huggingface_hub."""
        source = Source(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        settings = source.config()["quantization_config"]
        arguments.pop("quantization_config", None)
        model = cls(**arguments)
        fill(model._network(), source, settings.get("lazy", False) if lazy is None else lazy)
        model._network().eval()
        return model
