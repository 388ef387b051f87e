"""The network of a file: its own names, and whether it is that of the file at all."""

from __future__ import annotations

from torch import nn

from ...coded import Contents, facts_of
from ...compression.coded_model import unwrapped
from ...engine.network.naming import fitted
from ...errors import ModelError

__all__ = ["known_by"]


def known_by(contents: Contents, model: nn.Module) -> tuple[Contents, nn.Module]:
    """Return contents under the names of the network, and the network without wrappers.

    Raises:
        ModelError: the network has not all the tensors, or in other shapes.
    """
    network = unwrapped(model)
    contents = fitted(contents, network)
    state = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    facts = facts_of(contents.tensors)
    strange = [name for name in facts if state.get(name) != tuple(facts[name].shape)]
    if strange:
        raise ModelError(
            "the compressed network belongs to another architecture than "
            f"{type(network).__name__}: {len(strange)} of its tensors are not in the network, or "
            f"in other shapes ({', '.join(strange[:3])}). Pass a network that is built as the "
            "compressed one was."
        )
    return contents, network
