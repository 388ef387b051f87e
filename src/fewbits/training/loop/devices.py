"""Where a run computes: devices, precision and processes, by Lightning Fabric."""

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
    """Return a launched Fabric; under ``torchrun`` its processes are the devices.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "mps".
        devices: how many; each beyond the first is a process of its own.
        precision: of the forward and backward pass: "float32", or "bfloat16" or "float16" mixed.
            Weights are float32 throughout.

    Raises:
        MissingExtraError: Lightning Fabric is not installed.
        ConfigError: no such device or precision here.
    """
    require(precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", precision)
    known = ("auto", "cpu", "cuda", "mps")
    require(device in known, "device", f"one of {', '.join(known)}", device)
    require(devices >= 1, "devices", "at least 1", devices)
    made: Any = _fabric_class()
    nodes = 1
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and world > 1:
        require(devices == 1, "devices", "left out under torchrun, which says how many", devices)
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        nodes = world // devices
    strategy = "ddp" if devices * nodes > 1 else "auto"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another precision taken: refused below
            fabric: Fabric = made(
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
            f"device {device!r}, {devices} of them, in {precision} cannot be had here: {error}"
        ) from error
    if precision == "float16" and fabric.device.type == "cpu":
        raise ConfigError("precision 'float16' needs a GPU. On the CPU take 'bfloat16'.")
    fabric.launch()
    return fabric


def check_fabric(fabric: Fabric) -> None:
    """Refuse strategies and precisions that a tuner cannot work under.

    Raises:
        ConfigError: weights would be sharded, or not float32.
    """
    strategy = type(fabric.strategy).__name__
    if strategy not in ("SingleDeviceStrategy", "DDPStrategy"):
        raise ConfigError(
            f"strategy {strategy} is not for tuning: a method sees the weights of the whole "
            "network in every process. Use one device, or strategy='ddp'."
        )
    precision = str(fabric.strategy.precision.precision)
    if precision not in (*PRECISIONS.values(), "64-true"):
        raise ConfigError(
            f"precision {precision!r} is not for tuning: weights between levels need float32. Use "
            f"one of {', '.join(PRECISIONS.values())}."
        )


def release(fabric: Fabric) -> None:
    """Part from the other processes at the end of a program; without it an exit may abort."""
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
