"""What transformers calls a quantizer: it fills a network with the coded weights of a folder.

Imported once transformers has its own quantizers (``hub/hook.py``). transformers builds the network
on the meta device, finds that the only tensor of the folder's weights matches a
:class:`_CodedWeights`, and takes from it the values of all tensors: it moves them to their devices,
ties weights, and reports what is missing or of another shape, as for every checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import re
from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..engine.activations.hooks import load_inputs
from ..errors import ConfigError, MissingExtraError, require
from ..pretrained import WEIGHTS, quantization_settings
from .weights import FolderWeights, without_lazy_weights

__all__ = ["FewbitsConfig", "FewbitsQuantizer", "register"]

_METHOD = "fewbits"
_NEEDED = ("update_attn_implementation", "update_weight_conversions")
_log = logging.getLogger(__name__)


class FewbitsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ``quantization_config`` of a folder.

    Attributes:
        lazy: whether weights stay in the file until they are used.
        dequantize: whether the network is an ordinary one once it is loaded; see
            :class:`FewbitsQuantizer`.
    """

    def __init__(self, lazy: bool = False, **others: Any) -> None:
        require(isinstance(lazy, bool), "lazy in quantization_config", "True or False", lazy)
        self.quant_method = _METHOD
        self.lazy = lazy
        self.dequantize = False

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they stand in ``config.json``."""
        return quantization_settings(self.lazy)


class FewbitsQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads a folder that :meth:`fewbits.CodedModel.save_pretrained` wrote.

    The network is then an ordinary one, which may be trained, cast and saved, unless its weights
    are lazy or its layer inputs are quantized: such a network is saved by copying its folder, or
    after ``model.dequantize()``.
    """

    def __init__(self, quantization_config: FewbitsConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._path = ""
        self._dtype = torch.get_default_dtype()
        self._device = torch.device("cpu")
        self._weights: FolderWeights | None = None

    # -- before the network is built

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work, before anything is read."""
        if not all(hasattr(HfQuantizer, name) for name in _NEEDED):
            raise MissingExtraError("transformers>=5.24", "hf", "loading coded weights")
        if not self.pre_quantized:
            raise ConfigError(
                "transformers cannot compress by fewbits while it loads. Load the network without "
                "quantization_config=, compress it by fewbits.compress(model, ...), and write it "
                "by coded.save_pretrained(folder)."
            )
        if device_map is not None and self.quantization_config.lazy:
            places = list(device_map.values()) if isinstance(device_map, dict) else []
            if len(places) != 1 or places[0] == "disk":
                raise ConfigError(
                    "weights that stay in their file (lazy) are decoded to one device, and "
                    f"device_map is {device_map!r}. Name a device, or load with lazy=False."
                )
            self._device = torch.device(places[0])

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file of weights; transformers looks for it right afterwards."""
        config.transformers_weights = WEIGHTS
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Note the dtype that the network will have."""
        self._dtype = dtype
        return dtype

    # -- weights

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        model.config.__dict__.pop("transformers_weights", None)
        if not checkpoint_files:
            raise ConfigError(
                f"the weights of a folder of fewbits are in its {WEIGHTS}, and none was found. "
                "Name the folder, or the repository, in from_pretrained."
            )
        self._path = checkpoint_files[0]

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Return the one converter that there is: names in the file are those of the network."""
        first = next(iter(model.state_dict()))
        return [_converter_class()(["^fewbits$"], [first], [_Nothing()], force_cpu=True)]

    def folder_weights(self, model: Any, unexpected: Any) -> FolderWeights:
        """Return the values for ``model``."""
        loading = importlib.import_module("transformers.core_model_loading")
        state = model.state_dict()
        prefix = model.base_model_prefix

        def renamed(name: str) -> str:
            """Add or strip the prefix of the base model, if that is what the names differ by."""
            known = name in state
            new: str = name if known else loading.rename_source_key(name, [], [], prefix, state)[0]
            return new

        plan = {re.compile(rf"(^|\.){key}(\.|$)"): d for key, d in self._kept(model).items()}

        def dtype(name: str, usual: torch.dtype) -> torch.dtype:
            return next((kept for key, kept in plan.items() if key.search(name)), usual)

        self._weights = FolderWeights(
            path=self._path,
            network=model,
            renamed=renamed,
            dtype=dtype,
            tied=model.all_tied_weights_keys,
            lazy=self.quantization_config.lazy,
            device=self._device,
            unexpected=unexpected,
        )
        return self._weights

    def _kept(self, model: Any) -> dict[str, torch.dtype]:
        """Return the dtypes of modules that stay in float32 in a network of float16."""
        plan: dict[str, torch.dtype] = model._get_dtype_plan(self._dtype)
        return plan

    def postprocess_model(self, model: Any, **kwargs: Any) -> Any:
        """Quantize the inputs that the file quantizes; leave an ordinary network if possible."""
        grids = {} if self._weights is None else self._weights.grids
        self._weights = None
        load_inputs(model, grids)
        self.quantization_config.dequantize = not (grids or self.quantization_config.lazy)
        return super().postprocess_model(model, **kwargs)

    # -- afterwards

    def _dequantize(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        without_lazy_weights(model)
        return model.to(dtype)

    def is_serializable(self) -> bool:
        """Return False: the network's own save_pretrained would write something else."""
        _log.warning(
            "the weights of this network are in a file of fewbits, or its inputs are quantized. "
            "Copy its folder, or call model.dequantize() to save an ordinary network."
        )
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether weights take gradients."""
        return not self.quantization_config.lazy


def _converter_class() -> Any:
    """Return the class of the converter, whose base class is imported after the quantizers."""
    loading = importlib.import_module("transformers.core_model_loading")

    class CodedWeights(loading.WeightConverter):  # type: ignore[misc,name-defined]
        """Gives the values of all tensors for the bytes of the file."""

        __slots__ = ()

        def convert(
            self,
            layer_name: str,
            model: Any = None,
            config: Any = None,
            hf_quantizer: Any = None,
            loading_info: Any = None,
        ) -> FolderWeights:
            """Return names and values, which are decoded one at a time as they are asked for."""
            self.materialize_tensors()  # lets go of the bytes, which are read where they are
            weights: FolderWeights = hf_quantizer.folder_weights(
                model, loading_info.unexpected_keys.add
            )
            return weights

    return CodedWeights


class _Nothing:
    """Stands for the operation that a converter must have; it is never called."""

    supports_many_to_many = False


def register() -> None:
    """Register with transformers."""
    if _METHOD in auto.AUTO_QUANTIZER_MAPPING or not hasattr(auto, "register_quantizer"):
        return  # a version without a register only warns of coded weights, and finds none
    auto.register_quantization_config(_METHOD)(FewbitsConfig)
    auto.register_quantizer(_METHOD)(FewbitsQuantizer)
