"""The network that a file names, and how a sample uses its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...container import inspect as read_header
from ...errors import ConfigError, SourceError

if TYPE_CHECKING:
    from ...coded import Use

__all__ = ["stored_source", "uses_of"]


def stored_source(file: Path, data: str) -> str:
    """Return the source of the network that the file names.

    A file may name what is built but never cause a download, so callers must pass ``fetch=False``.
    User code may only be named by a file if ``data`` names the same module: otherwise a file from
    someone else could call any installed function. Schemes such as ``datasets``, or those added by
    a package, do not count as modules.

    Raises:
        SourceError: the file names no source, or one that is not trusted.
    """
    source = read_header(file).metadata.get("source")
    if not isinstance(source, str) or not source:
        raise SourceError(f"{file}: does not say how to build its network. Add --model SOURCE.")
    scheme, _, attribute = source.partition(":")
    if attribute.startswith(("//", "\\\\")):
        raise SourceError(
            f"{file}: names the network {source!r}, which is on another machine. "
            f"Add --model {source} if you trust it."
        )
    is_library = scheme in ("builtin", "transformers", "timm", "torchvision")
    if not (is_library or (attribute.isidentifier() and scheme == _module_of(data))):
        raise SourceError(
            f"{file}: names the network {source!r}, which would import and call code. "
            f"Add --model {source} if you trust it."
        )
    return source


def _module_of(data: str) -> str:
    """Return the user module that ``data`` names; empty if there is none."""
    from ...sources import code_of  # noqa: PLC0415  (brings torch)

    return code_of(data, "data") if data else ""


def uses_of(file: Path, data: str, model: str | None) -> dict[str, Use]:
    """Count how often one sample of ``data`` uses each weight of the network in ``file``.

    Raises:
        ConfigError: the data has no samples.
    """
    source = model or stored_source(file, data)
    from ...api import load  # noqa: PLC0415  (brings torch)
    from ...engine.layers.uses import count_uses  # noqa: PLC0415
    from ...engine.network.batches import as_forward  # noqa: PLC0415
    from ...engine.network.naming import fit_names  # noqa: PLC0415
    from ...sources import load_data, load_model  # noqa: PLC0415

    network = load(file, into=load_model(source, pretrained=False, fetch=model is not None).module)
    batch = next(iter(load_data(data, source).batches("test", 1)), None)
    if batch is None:
        raise ConfigError(f"data {data!r} has no sample to run the network on.")
    uses = count_uses(network, batch, 1, as_forward(None))
    rows = read_header(file).report.rows
    names = fit_names((row.name for row in rows if row.is_tensor), network.state_dict())
    return {stored: uses[name] for stored, name in names.items() if name in uses}
