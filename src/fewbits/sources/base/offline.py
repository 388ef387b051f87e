"""Offline mode: a file that names a hub model may use the local cache, but never downloads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["NOT_FETCHED", "offline"]

NOT_FETCHED = (
    " It is not in the local cache, and fewbits downloads nothing just because a file names it. To "
    "download it, name it yourself: --model {source}."
)


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Restrict the Hugging Face client to its local cache inside the block, if ``wanted``.

    Needed besides ``local_files_only``, which libraries do not pass on to everything they load.
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
