"""Write what the documentation takes from the code and from benchmark records. Run: make docs."""

from __future__ import annotations

import sys

from generator.command_line import command_line
from generator.pages import readme, robustness, support
from generator.records import ROOT
from generator.settings import settings_page

NOTE = "<!-- Written by docs/build.py; `make docs` writes it again. -->\n\n"


def main() -> None:
    """Write the pages; with --check only compare, and exit with 1 where one is out of date."""
    docs = ROOT / "docs"
    reference = docs / "reference"
    pages = {
        reference / "methods.md": NOTE + settings_page(),
        reference / "support.md": NOTE + support(),
        reference / "command_line.md": NOTE + command_line(),
        docs / "robustness.md": robustness(),
        ROOT / "README.md": readme(),
    }
    stale = [p for p, t in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != t]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"out of date: {', '.join(p.name for p in stale)}. Run: make docs")
        return
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
