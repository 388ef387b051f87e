"""What a file says of its network, and what running that network once tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...container import inspect as look
from ...errors import ConfigError, SourceError

if TYPE_CHECKING:
    from ...coded import Use

__all__ = ["stored_source", "uses_of"]


def stored_source(file: Path, data: str) -> str:
    """Return how the file says its network is built.

    Whoever builds it passes ``fetch=False``: a file names what may be built, not what is fetched.
    Of one's own modules, a file may only name the one that the command line names too, as the
    module of the data: otherwise a file from elsewhere could have any installed function called.
    A scheme of data such as ``datasets``, or one that a package adds, is no such module.
    """
    source = look(file).metadata.get("source")
    if not isinstance(source, str) or not source:
        raise SourceError(f"{file}: does not say how to build its network. Add --model SOURCE.")
    scheme, _, attribute = source.partition(":")
    if attribute.startswith(("//", "\\\\")):
        raise SourceError(
            f"{file}: names the network {source!r}, which is on another machine. "
            f"Add --model {source} if you trust it."
        )
    listed = scheme in ("builtin", "transformers", "timm", "torchvision")
    if not (listed or (attribute.isidentifier() and scheme == _module_of(data))):
        raise SourceError(
            f"{file}: names the network {source!r}, which would import and call code. "
            f"Add --model {source} if you trust it."
        )
    return source


def _module_of(data: str) -> str:
    """Return the module of one's own that ``data`` names; empty for none."""
    from ...sources import code_of  # noqa: PLC0415  (brings torch)

    return code_of(data, "data") if data else ""


def uses_of(file: Path, data: str, model: str | None) -> dict[str, Use]:
    """Return how a sample of ``data`` uses each weight of the network in ``file``.

    Raises:
        ConfigError: data without samples.
    """
    source = model or stored_source(file, data)
    from ...api import load  # noqa: PLC0415  (brings torch)
    from ...engine.layers.uses import count_uses  # noqa: PLC0415
    from ...engine.network.batches import as_forward  # noqa: PLC0415
    from ...engine.network.naming import fit_names  # noqa: PLC0415
    from ...sources import load_data, load_model  # noqa: PLC0415

    network = load(file, into=load_model(source, pretrained=False, fetch=model is not None).module)
    batch = next(iter(load_data(data).batches("test", 1)), None)
    if batch is None:
        raise ConfigError(f"data {data!r} has no sample to run the network on.")
    uses = count_uses(network, batch, 1, as_forward(None))
    rows = look(file).report.rows
    names = fit_names((row.name for row in rows if row.is_tensor), network.state_dict())
    return {theirs: uses[ours] for theirs, ours in names.items() if ours in uses}
