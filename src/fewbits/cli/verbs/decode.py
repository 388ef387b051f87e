"""``fewbits decode``: a file back to a plain state dict that everything can read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...container.limits import default_limit
from ...errors import ConfigError
from ...files.atomic_write import write
from ..console.outcome import (
    DecodeThreads,
    Force,
    Json,
    MaxDecoded,
    Outcome,
    check_output,
    in_bytes,
    verb,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode"]

_RESERVED = "__metadata__"
_SUFFIXES = (".safetensors", ".pt", ".pth")


@verb
def decode(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .safetensors, .pt or .pth file.")],
    *,
    max_decoded_mib: MaxDecoded = None,
    threads: DecodeThreads = 0,
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

    from ...api import load  # noqa: PLC0415

    # Tied tensors share memory, which safetensors refuses: every name gets values of its own.
    limit = in_bytes(max_decoded_mib)
    found = load(file, max_decoded_bytes=limit, threads=threads)
    _check_written(found, file, limit)
    state = {name: tensor.clone().contiguous() for name, tensor in found.items()}
    if out.suffix == ".safetensors":
        _check_safetensors(state, file)
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


def _check_written(state: Mapping[str, Tensor], file: Path, limit: int | None) -> None:
    """Refuse to write more than the file may decode to: a name takes few bytes, its values many."""
    allowed = default_limit(file.stat().st_size) if limit is None else limit
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > allowed:
        raise ConfigError(
            f"{file}: {len(state)} names, tied ones with values of their own, take {total:,} bytes "
            f"of at most {allowed:,}. Allow more by --max-decoded-mib {-(-total // 2**20)}."
        )


def _check_safetensors(state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse what a safetensors file would not give back: a name of its own, and some dtypes."""
    if _RESERVED in state:
        raise ConfigError(
            f"{file} has a tensor named {_RESERVED!r}, and safetensors keeps that name for itself. "
            "Write a .pt file instead."
        )
    from safetensors.torch import load, save  # noqa: PLC0415

    for dtype, name in {tensor.dtype: name for name, tensor in state.items()}.items():
        try:
            load(save({"x": state[name].reshape(-1)[:0].clone()}))
        except Exception as error:  # whatever its version raises
            raise ConfigError(
                f"{file}: tensor {name!r} is {str(dtype).removeprefix('torch.')}, which "
                "safetensors does not hold. Write a .pt file instead."
            ) from error
