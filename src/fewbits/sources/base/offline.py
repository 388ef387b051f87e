"""Nothing is fetched because a file says so: names of a hub are looked up in its local cache."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["NOT_FETCHED", "offline"]

NOT_FETCHED = (
    " It is not in the local cache, and nothing is fetched because a file names it. To fetch it, "
    "name it yourself: --model {source}."
)


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Let the client of the Hugging Face hub use its cache alone inside, where ``wanted``.

    Beside ``local_files_only``, which libraries do not pass on to all that they load.
    """
    constants: Any = _constants() if wanted else None
    if constants is None:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _constants() -> Any:
    try:
        return importlib.import_module("huggingface_hub.constants")
    except ImportError:
        return None
