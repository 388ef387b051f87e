"""The options that say where the points of a sweep are measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ...errors import did_you_mean, shorten

if TYPE_CHECKING:
    from ...search import Engine

__all__ = ["Cpus", "EngineName", "RayAddress", "Tries", "chosen_engine"]

_PANEL = "Where points are measured"

EngineName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--engine",
        help="serial: one after the other, here; ray: on a Ray cluster (needs the extra 'ray'). "
        "See docs/many_machines.md.",
        rich_help_panel=_PANEL,
    ),
]
RayAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Cluster to use: HOST:PORT, auto (the one on this machine) or local (start one). "
        "\\[default: RAY_ADDRESS, else the one on this machine, else local]",
        rich_help_panel=_PANEL,
    ),
]
Cpus: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="CPUs, and threads, of each point. \\[default: 1 with ray, else as PyTorch chooses]",
        rich_help_panel=_PANEL,
    ),
]
Tries: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How often ray begins a point that fails or whose process dies. \\[default: 2]",
        rich_help_panel=_PANEL,
    ),
]


def chosen_engine(name: str, address: str | None, cpus: int | None, tries: int | None) -> Engine:
    """Return the engine that the options describe.

    Raises:
        typer.BadParameter: unknown engine, or an option of ray without it.
    """
    from ...search import ENGINES, Ray, Serial  # noqa: PLC0415

    if name not in ENGINES:
        raise typer.BadParameter(
            f"--engine must be one of {', '.join(ENGINES)}. Got {shorten(name)}."
            + did_you_mean(name, ENGINES)
        )
    if name == Serial.name:
        for option, value in (("ray-address", address), ("tries", tries)):
            if value is not None:
                raise typer.BadParameter(f"--{option} only applies to --engine ray.")
        return Serial(cpus=cpus)
    default = Ray()
    return Ray(address=address, cpus=cpus or default.cpus, tries=tries or default.tries)
