"""``fewbits inspect``: list the parts of a file and their bytes, without torch or the model."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ...coded import ActivationGrid, ActivationSite, energy_of, network_values
from ...container import inspect as read_header
from ...container import read
from ...errors import shorten
from ...report import Table, energy_table, entropy_table, histogram_table, size_table, values_table
from ..console.outcome import Json, Outcome, verb, warn_low_coverage
from ..jobs.indices import entropy_row, histogram, index_matrices
from ..jobs.stored import uses_of

__all__ = ["inspect"]

_LONGEST_METADATA = 20_000  # characters


@verb
def inspect(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    *,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Decode and show entropies of order 0, 1 and 2.")
    ] = False,
    tensor: Annotated[
        str | None, typer.Option(help="Decode and show the histogram of this tensor's indices.")
    ] = None,
    values: Annotated[
        bool,
        typer.Option("--values", help="Decode and show the distinct values of the network."),
    ] = False,
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help="Decode and count the shifts and adds that can replace multiplications.",
        ),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="With --energy: count for one sample of this data.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --data: the network's source. \\[default: the one in the file]"),
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """List every tensor of a file with its bytes, which add up to the size of the file.

    Also verifies the checksums. Runs none of the model's code and does not need torch, unless
    --data is given.

    Example: fewbits inspect digits.fewbits
    """
    info = read_header(file)
    version = ".".join(map(str, info.version))
    lines = [f"{name} is the same tensor as {to}" for name, to in info.aliases.items()]
    modules = {row.name.rpartition(".")[0] for row in info.report.rows}
    lines += [_activation_line(site, grid, modules) for site, grid in info.activations.items()]
    shown: list[Table | str] = [size_table(info.report, f"{file}, format {version}")]
    facts = {**info.to_dict(), "quantized": info.report.coverage.to_dict()}
    warn_low_coverage(info.report.coverage, info.metadata)
    if entropy or tensor is not None:
        indices = index_matrices(file)
        if entropy:
            rows = [entropy_row(name, index) for name, index in indices.items()]
            facts["entropy"] = [row.to_dict() for row in rows]
            shown.append(entropy_table(rows, info.report))
        if tensor is not None:
            counts = histogram(indices, tensor)
            facts["histogram"] = {str(index): count for index, count in counts.items()}
            shown.append(histogram_table(counts, tensor))
    if values or energy:
        tensors = read(file).tensors
        if values:
            distinct = network_values(tensors)
            facts["values"] = distinct.to_dict()
            shown.append(values_table(distinct, "values"))
        if energy:
            uses = None if data is None else uses_of(file, data, model)
            stored = {row.name: row.bytes for row in info.report.rows if row.is_tensor}
            cost = energy_of(tensors, stored, uses)
            facts["energy"] = cost.to_dict()
            shown.append(energy_table(cost, "energy", positions=uses is not None))
    return Outcome(facts, (*shown, *lines, *_as_yaml(dict(info.metadata))))


def _activation_line(site: str, grid: ActivationGrid, modules: Container[str]) -> str:
    place = ActivationSite.of(site, modules)
    where = f"{'output' if place.output else 'input'} of {place.module}"
    where += f", call {place.call}" if place.call is not None else ""
    zero = f", zero at {grid.zero}" if grid.zero else ""
    signed = "signed" if grid.signed else "unsigned"
    return f"{where}: {grid.bits} bits, {signed}, clip {grid.clip:g}{zero}"


def _as_yaml(metadata: dict[str, Any]) -> list[str]:
    """Return metadata as YAML, as a recipe is written; abbreviate it if it is very long."""
    if not metadata:
        return []
    if len(json.dumps(metadata)) > _LONGEST_METADATA:  # dumping YAML is a thousand times slower
        return [shorten(metadata)]
    return [yaml.safe_dump(metadata, sort_keys=False).rstrip()]
