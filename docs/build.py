"""Write the generated pages under docs/reference from the registries. Run: make docs."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from fewbits import METHODS
from fewbits.coding import CODECS
from fewbits.engine.views import KINDS

HERE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/build.py; `make docs` writes it again. -->\n\n"


def methods() -> str:
    """One section per registered method: what it needs, and its settings."""
    parts = ["# Methods\n"]
    for name, method in METHODS.items():
        parts.append(f"\n## {name}\n\n{method.summary}.\n\n- Paper: {method.paper}")
        parts.append(f"- Needs: {method.needs}\n\n| setting | default |\n|---|---|")
        parts += [f"| `{field.name}` | `{field.default!r}` |" for field in fields(method)]
    return NOTE + "\n".join(parts) + "\n"


def support() -> str:
    """The support matrix: layer kinds and codecs."""
    kinds = "\n".join(f"| `{name}` | {kind.summary} |" for name, kind in KINDS.items())
    codecs = "\n".join(f"- `{name}`" for name, _ in CODECS.items())
    return (
        f"{NOTE}# Support\n\n## Layer kinds\n\n"
        'A weight "falls back" to rounding with least squared error where a method needs inputs\n'
        "that cannot be seen; the plan says so for each.\n\n"
        f"| kind | modules |\n|---|---|\n{kinds}\n\n## Codecs\n\n{codecs}\n"
    )


def main() -> None:
    """Write the pages; with --check only compare, and exit with 1 where one is out of date."""
    stale = []
    for name, text in (("methods.md", methods()), ("support.md", support())):
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(stale)}. Run: make docs")


if __name__ == "__main__":
    main()
