"""Devices, precision and processes of a run, by Lightning Fabric."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from torch import distributed

from ...errors import ConfigError, MissingExtraError, require

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["PRECISIONS", "check_fabric", "make_fabric", "release"]

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def make_fabric(device: str = "auto", devices: int = 1, precision: str = "float32") -> Fabric:
    """Return a launched Fabric; under ``torchrun`` each process is one device.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps".
        devices: number of devices, each with its own process.
        precision: precision of the forward and backward pass: "float32", or mixed "bfloat16" or
            "float16". Weights are always float32.

    Raises:
        MissingExtraError: Lightning Fabric is not installed.
        ConfigError: the device or precision is not available.
    """
    require(precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", precision)
    known = ("auto", "cpu", "cuda", "mps")
    require(device in known, "device", f"one of {', '.join(known)}", device)
    require(devices >= 1, "devices", "at least 1", devices)
    fabric_class: Any = _fabric_class()
    nodes = 1
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and world > 1:
        require(devices == 1, "devices", "left out under torchrun, which sets it", devices)
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        nodes = world // devices
    strategy = "ddp" if devices * nodes > 1 else "auto"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a replaced precision, which is refused below
            fabric: Fabric = fabric_class(
                accelerator=device,
                devices=devices,
                num_nodes=nodes,
                strategy=strategy,
                precision=PRECISIONS[precision],
            )
    except (RuntimeError, ValueError, ImportError) as error:
        if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
            raise
        raise ConfigError(
            f"device {device!r} ({devices} of them) with precision {precision!r} is not available: "
            f"{error}"
        ) from error
    if precision == "float16" and fabric.device.type == "cpu":
        raise ConfigError("precision 'float16' needs a GPU. On a CPU use 'bfloat16'.")
    fabric.launch()
    return fabric


def check_fabric(fabric: Fabric) -> None:
    """Refuse strategies and precisions that a tuner does not support.

    Raises:
        ConfigError: weights would be sharded, or not float32.
    """
    strategy = type(fabric.strategy).__name__
    if strategy not in ("SingleDeviceStrategy", "DDPStrategy"):
        raise ConfigError(
            f"strategy {strategy} is not supported: methods need the weights of the whole network "
            "in every process. Use one device, or strategy='ddp'."
        )
    precision = str(fabric.strategy.precision.precision)
    if precision not in (*PRECISIONS.values(), "64-true"):
        raise ConfigError(
            f"precision {precision!r} is not supported: weights between levels need float32. Use "
            f"one of {', '.join(PRECISIONS.values())}."
        )


def release(fabric: Fabric) -> None:
    """Leave the process group at the end of a program, whose exit may otherwise abort."""
    if fabric.world_size > 1 and distributed.is_initialized():
        fabric.barrier()
        distributed.destroy_process_group()


def _fabric_class() -> type[Fabric]:
    try:
        from lightning_fabric import Fabric  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning_fabric":
            raise
        raise MissingExtraError("lightning-fabric", "train", "training") from error
    return Fabric
