"""``fewbits decode``: turn a file back into a plain checkpoint that any tool can read."""

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
    mib_to_bytes,
    verb,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode"]

_RESERVED = "__metadata__"
_TOLD = 4  # tied names that the output lists
_SUFFIXES = (".safetensors", ".pt", ".pth")


@verb
def decode(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The .safetensors, .pt or .pth file to write.")
    ],
    *,
    base: Annotated[
        Path | None,
        typer.Option(
            help="If FILE is a delta, what it is a change of: a .fewbits file, a checkpoint, or a "
            "folder with one."
        ),
    ] = None,
    all_names: Annotated[
        bool,
        typer.Option(
            "--all-names",
            help="In .safetensors, write a tied weight under each of its names, for tools that do "
            "not tie weights themselves.",
        ),
    ] = False,
    max_decoded_mib: MaxDecoded = None,
    threads: DecodeThreads = 0,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Dequantize the tensors of a file and write them as a plain checkpoint.

    A tied weight is written once. A .safetensors file has it under its first name, as Hugging Face
    and safetensors.torch.save_model do, and lists the others in its metadata; whoever loads it ties
    them again. A .pt file has all names, which share memory.

    What changed since another network is decoded with that as --base.

    Example: fewbits decode digits.fewbits -o digits.safetensors
    """
    if out.suffix not in _SUFFIXES:
        raise ConfigError(f"output {str(out)!r} must end in one of {', '.join(_SUFFIXES)}.")
    check_output(out, force)
    import torch  # noqa: PLC0415
    from safetensors.torch import save  # noqa: PLC0415

    from ...api import load  # noqa: PLC0415

    limit = mib_to_bytes(max_decoded_mib)
    decoded = load(file, base=base, max_decoded_bytes=limit, threads=threads)
    tied = _tied(decoded)
    once = {name: tensor for name, tensor in decoded.items() if name not in tied}
    if out.suffix == ".safetensors":
        # Tied tensors share memory, which safetensors refuses: further names are left out, or get
        # a copy.
        if all_names:
            _check_size(decoded, file, limit)
            once |= {name: decoded[name].clone() for name in tied}
        _check_safetensors(once, file)
        data = save(once, {"format": "pt", **({} if all_names else tied)})
    else:
        buffer = io.BytesIO()
        torch.save(decoded, buffer)
        data = buffer.getvalue()
    write(data, out)
    values = sum(tensor.numel() for tensor in once.values())
    facts = {"file": str(out), "bytes": len(data), "tensors": len(once), "values": values}
    line = f"{out}: {len(once)} tensors, {values:,} values, {len(data):,} bytes"
    if not tied or all_names:
        return Outcome({**facts, "tied": {}}, (line,))
    return Outcome({**facts, "tied": tied}, (f"{line}; {_told(tied)}",))


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return further names of tensors, with the first name of each."""
    owners = {id(tensor): name for name, tensor in reversed(list(state.items()))}
    return {name: owners[id(t)] for name, t in state.items() if owners[id(t)] != name}


def _told(tied: Mapping[str, str]) -> str:
    names = [f"{name} = {owner}" for name, owner in list(tied.items())[:_TOLD]]
    more = f" and {len(tied) - _TOLD} more" if len(tied) > _TOLD else ""
    return f"tied weights are written once: {', '.join(names)}{more}"


def _check_size(state: Mapping[str, Tensor], file: Path, limit: int | None) -> None:
    """Apply the limit of decoding to what is written: a tied name costs little, its copy a lot."""
    allowed = default_limit(file.stat().st_size) if limit is None else limit
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > allowed:
        raise ConfigError(
            f"{file}: {len(state)} tensors, with a copy for each tied name, take {total:,} bytes, "
            f"above the limit of {allowed:,}. Raise it with "
            f"--max-decoded-mib {-(-total // 2**20)}."
        )


def _check_safetensors(state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse names and dtypes that a safetensors file cannot hold."""
    if _RESERVED in state:
        raise ConfigError(
            f"{file} has a tensor named {_RESERVED!r}, a name that safetensors reserves. "
            "Write a .pt file instead."
        )
    from safetensors.torch import load, save  # noqa: PLC0415

    for dtype, name in {tensor.dtype: name for name, tensor in state.items()}.items():
        try:
            load(save({"x": state[name].reshape(-1)[:0].clone()}))
        except Exception as error:  # the type depends on the version of safetensors
            raise ConfigError(
                f"{file}: tensor {name!r} is {str(dtype).removeprefix('torch.')}, which "
                "safetensors cannot store. Write a .pt file instead."
            ) from error
