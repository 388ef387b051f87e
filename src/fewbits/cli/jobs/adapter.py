"""The work of ``fewbits compress --method lora``: one adapter, at an error of its products."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...compression.deltas.adapters import compress_adapter
from ..console.outcome import Outcome

__all__ = ["write_adapter"]


def write_adapter(
    folder: Path, out: Path, settings: Mapping[str, Any], *, effort: str, threads: int
) -> Outcome:
    """Compress the adapter in a file or folder, and say how large it is."""
    started = time.perf_counter()
    coded = compress_adapter(folder, **settings)
    size = coded.save(out, effort, threads=threads)
    seconds = time.perf_counter() - started
    report = coded.size_report()
    facts = {"file": str(out), "bytes": size, "float_bytes": report.float_bytes}
    facts |= {"adapter": coded.contents.metadata["adapter"], "seconds": seconds}
    return Outcome(facts, (f"{out}: {report.summary} ({seconds:.1f} s)",))
