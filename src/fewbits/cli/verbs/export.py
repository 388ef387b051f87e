"""``fewbits export``: a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError
from ..console.outcome import Force, Json, Outcome, check_output, verb
from ..jobs.stored import stored_source
from ..options.choice import settings_of

__all__ = ["export"]

_SAMPLES = 2  # of the data, to trace the network with


@verb
def export(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    *,
    data: Annotated[
        str | None, typer.Option(help="Two samples of it are run through the network.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Such as onnx. \\[default: what the suffix of --out says]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="How to build the network. \\[default: what the file says]")
    ] = None,
    processor: Annotated[
        str | None,
        typer.Option(help="Of onnx: any; or vnni: faster, and wrong on x86 without VNNI."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the exporter; repeat.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Write the network for another runtime, its weights and inputs as integers.

    Says what is not: fewer than 8 bits, or no integers, and what the runtime makes of it.

    Example: fewbits export digits.fewbits --data digits -o digits.onnx
    """
    from ...exporters import EXPORTERS, exporter_for, exporter_name  # noqa: PLC0415
    from ...exporters import export as write  # noqa: PLC0415

    if to is not None and to not in EXPORTERS:
        raise typer.BadParameter(f"--to: {EXPORTERS.unknown(to)}")
    options = settings_of(settings or ())
    if processor is not None:
        if "processor" in options:
            raise typer.BadParameter("processor is given twice: by --processor and by --set.")
        options["processor"] = processor
    name = exporter_name(out, to)
    exporter = exporter_for(name, options)
    if exporter.suffix and out.suffix != exporter.suffix:
        raise ConfigError(f"output {str(out)!r} must end in {exporter.suffix}.")
    if exporter.needs == "inputs" and data is None:
        raise typer.BadParameter(f"{name} runs the network on two samples: add --data.")
    check_output(out, force)
    given = {} if exporter.needs == "nothing" else _network(file, data, model)
    made = write(file, out, to=name, **given, **options)
    integers = f", {len(made.weights)} weights and {len(made.inputs)} inputs as integers"
    line = f"{out}: {made.bytes:,} bytes{integers if exporter.keeps_codes else ''}"
    return Outcome(made.to_dict(), (line, *(f"note: {note}" for note in made.notes)))


def _network(file: Path, data: str | None, model: str | None) -> dict[str, Any]:
    """Return the network of a file, and inputs of it if there are data."""
    source = model or stored_source(file, data or "")
    from ...sources import load_data, load_model  # noqa: PLC0415

    network = load_model(source, pretrained=False, fetch=model is not None).module
    if data is None:
        return {"model": network}
    batch = next(iter(load_data(data).batches("test", _SAMPLES, _SAMPLES)))
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return {"model": network, "inputs": inputs}
