"""``timm:NAME`` and ``torchvision:NAME``: networks of these two libraries, if installed."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import nn

from ..errors import SourceError, did_you_mean
from .base.offline import NOT_FETCHED, offline
from .base.registries import MODELS
from .base.spec import Spec, optional_import, switch, whole

__all__ = ["timm_model", "torchvision_model"]


@MODELS.register("timm")
def timm_model(spec: Spec, pretrained: bool) -> nn.Module:
    """Build a timm network. Options: pretrained (true), classes, channels."""
    options = spec.parsed({"pretrained": switch, "classes": whole, "channels": whole})
    name = spec.need_target("network", "timm:resnet18")
    timm = optional_import("timm", "vision", f"model source {spec.text!r}")
    sizes = {"classes": "num_classes", "channels": "in_chans"}
    settings = {sizes[key]: options[key] for key in sizes if key in options}
    wanted = pretrained and options.get("pretrained", True) and spec.fetch
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise SourceError(
            f"source {spec.text!r}: timm has no network {name!r}."
            + did_you_mean(name, timm.list_models())
        )
    try:
        with offline(not spec.fetch):
            model = timm.create_model(name, pretrained=wanted, **settings)
    except Exception as error:
        named = ":" in name and not spec.fetch
        hint = NOT_FETCHED.format(source=spec.text) if named else ""
        raise SourceError(f"source {spec.text!r}: timm failed: {error}{hint}") from error
    return _checked(model, spec)


@MODELS.register("torchvision")
def torchvision_model(spec: Spec, pretrained: bool) -> nn.Module:
    """Build a torchvision network with its default weights. Option: pretrained (true)."""
    options = spec.parsed({"pretrained": switch})
    name = spec.need_target("network", "torchvision:resnet18")
    models = optional_import("torchvision.models", "vision", f"model source {spec.text!r}")
    if name not in models.list_models():
        raise SourceError(
            f"source {spec.text!r}: torchvision has no network {name!r}."
            + did_you_mean(name, models.list_models())
        )
    wanted = pretrained and options.get("pretrained", True) and spec.fetch
    settings: dict[str, Any] = {"weights": "DEFAULT" if wanted else None}
    if not wanted and "weights_backbone" in signature(models.get_model_builder(name)).parameters:
        settings["weights_backbone"] = None  # otherwise the backbone's weights are downloaded
    try:
        model = models.get_model(name, **settings)
    except Exception as error:
        raise SourceError(f"source {spec.text!r}: torchvision failed: {error}") from error
    return _checked(model, spec)


def _checked(model: object, spec: Spec) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SourceError(f"source {spec.text!r} gave a {type(model).__name__}, not a network.")
    return model
