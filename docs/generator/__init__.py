"""What `docs/build.py` and the site are made with."""

from __future__ import annotations

__all__: list[str] = []
