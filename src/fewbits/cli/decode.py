"""``fewbits decode``: a file back to a plain state dict that everything can read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from ..disk import write
from ..errors import ConfigError
from .verb import DecodeWorkers, Force, Json, MaxDecoded, Outcome, check_output, in_bytes, verb

__all__ = ["decode"]

_SUFFIXES = (".safetensors", ".pt", ".pth")


@verb
def decode(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .safetensors, .pt or .pth file.")],
    *,
    max_decoded_mib: MaxDecoded = None,
    workers: DecodeWorkers = 0,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Write the dequantized tensors as a plain checkpoint.

    Example: fewbits decode digits.fewbits -o digits.safetensors
    """
    if out.suffix not in _SUFFIXES:
        raise ConfigError(f"output {str(out)!r} must end in one of {', '.join(_SUFFIXES)}.")
    check_output(out, force)
    import torch  # noqa: PLC0415
    from safetensors.torch import save  # noqa: PLC0415

    from ..api import load  # noqa: PLC0415

    # Tied tensors share memory, which safetensors refuses: every name gets values of its own.
    found = load(file, max_decoded_bytes=in_bytes(max_decoded_mib), workers=workers)
    state = {name: tensor.clone().contiguous() for name, tensor in found.items()}
    if out.suffix == ".safetensors":
        data = save(state)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
    write(data, out)
    values = sum(tensor.numel() for tensor in state.values())
    told = {"file": str(out), "bytes": len(data), "tensors": len(state), "values": values}
    line = f"{out}: {len(state)} tensors, {values:,} values, {len(data):,} bytes"
    return Outcome(told, (line,))
