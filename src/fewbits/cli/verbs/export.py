"""``fewbits export``: a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError, shorten
from ..console.outcome import Force, Json, Outcome, check_output, verb
from ..jobs.stored import stored_source

__all__ = ["export"]

_TARGETS = ("onnx",)
_SAMPLES = 2  # of the data, to trace the network with


@verb
def export(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    *,
    data: Annotated[str, typer.Option(help="Two samples of it are run through the network.")],
    to: Annotated[str, typer.Option(help="onnx")] = "onnx",
    model: Annotated[
        str | None, typer.Option(help="How to build the network. \\[default: what the file says]")
    ] = None,
    processor: Annotated[
        str, typer.Option(help="any; or vnni: faster, and wrong on x86 without VNNI.")
    ] = "any",
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Write the network for another runtime, its weights and inputs as integers.

    Says what is not: fewer than 8 bits, or no integers, and what the runtime makes of it.

    Example: fewbits export digits.fewbits --data digits -o digits.onnx
    """
    if to not in _TARGETS:
        raise typer.BadParameter(f"--to is one of {', '.join(_TARGETS)}, not {shorten(to)}.")
    if out.suffix != ".onnx":
        raise ConfigError(f"output {str(out)!r} must end in .onnx.")
    source = model or stored_source(file, data)
    check_output(out, force)
    from ...exporters import export_onnx  # noqa: PLC0415
    from ...sources import load_data, load_model  # noqa: PLC0415

    batch = next(iter(load_data(data).batches("test", _SAMPLES, _SAMPLES)))
    example = batch[0] if isinstance(batch, (tuple, list)) else batch
    network = load_model(source, pretrained=False, fetch=model is not None).module
    made = export_onnx(file, network, out, example, processor=processor)
    told = {
        "file": str(made.path),
        "bytes": made.bytes,
        "weights": made.weights,
        "inputs": made.inputs,
        "notes": list(made.notes),
        "processor": made.processor,
        "unsigned": list(made.unsigned),
    }
    line = (
        f"{out}: {made.bytes:,} bytes, {len(made.weights)} weights and {len(made.inputs)} inputs "
        "as integers"
    )
    return Outcome(told, (line, *(f"note: {note}" for note in made.notes)))
