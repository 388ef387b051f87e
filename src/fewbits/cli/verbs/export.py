"""``fewbits export``: write the network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError
from ..console.outcome import Force, Json, Outcome, check_output, verb
from ..jobs.stored import stored_source
from ..options.choice import parse_settings
from ..options.usage import as_usage

__all__ = ["export"]

_SAMPLES, _CHECKED = 2, 32  # to trace the network with, and to check the file on


@verb
def export(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write, or the folder.")],
    *,
    data: Annotated[
        str | None,
        typer.Option(help="Data; two samples (32 with --check) are run through the network."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Target format, such as onnx, gguf, safetensors or compressed-tensors (a folder). "
            "\\[default: from the suffix of --out]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The network's source. \\[default: the one in the file]")
    ] = None,
    processor: Annotated[
        str | None,
        typer.Option(
            help="For onnx: any, or vnni, which is faster but gives wrong results on x86 "
            "processors without VNNI."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the exporter, as key=value; may be repeated."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Run the file in its runtime on 32 calibration samples: agreement with the "
            "network, and time against a float32 export.",
        ),
    ] = False,
    larger: Annotated[
        bool,
        typer.Option(
            "--larger", help="Write the file even if it is larger than the weights in float32."
        ),
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Write the network for another runtime, with weights and inputs as integers.

    Notes report what differs: weights below 8 bits, layers left in float, and how the runtime
    handles them. A file larger than the network's weights in float32 is not written.

    Example: fewbits export digits.fewbits --data digits -o digits.onnx --check
    """
    from ...exporters import EXPORTERS, exporter_for, exporter_name  # noqa: PLC0415
    from ...exporters import export as write  # noqa: PLC0415

    if to is not None and to not in EXPORTERS:
        raise typer.BadParameter(f"--to: {EXPORTERS.unknown(to)}")
    options = parse_settings(settings or ())
    if processor is not None:
        if "processor" in options:
            raise typer.BadParameter(
                "processor is given twice, by --processor and by --set: drop one."
            )
        options["processor"] = processor
    name = exporter_name(out, to)
    with as_usage():
        exporter = exporter_for(name, options)
    if exporter.suffix and out.suffix != exporter.suffix:
        raise ConfigError(f"output {str(out)!r} must end in {exporter.suffix}.")
    if exporter.needs == "inputs" and data is None:
        raise typer.BadParameter(f"{name} needs two samples to run the network on: add --data.")
    check_output(out, force, folder=not exporter.suffix)
    network = {} if exporter.needs == "nothing" else _network(file, data, model, check)
    exported = write(file, out, to=name, check=check, larger=larger, **network, **options)
    integers = f", {len(exported.weights)} weights and {len(exported.inputs)} inputs as integers"
    line = f"{out}: {exported.bytes:,} bytes{integers if exporter.keeps_codes else ''}"
    found = () if exported.check is None else (f"check: {exported.check}",)
    notes = (f"note: {note}" for note in exported.notes)
    return Outcome(exported.to_dict(), (line, *found, *notes))


def _network(file: Path, data: str | None, model: str | None, check: bool) -> dict[str, Any]:
    """Build the network of a file, with sample inputs if there is data."""
    source = model or stored_source(file, data or "")
    from ...sources import load_data, load_model  # noqa: PLC0415

    network = load_model(source, pretrained=False, fetch=model is not None).module
    if data is None:
        return {"model": network}
    split, count = ("calibration", _CHECKED) if check else ("test", _SAMPLES)
    batch = next(iter(load_data(data, source).batches(split, count, count)))
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return {"model": network, "inputs": inputs}
