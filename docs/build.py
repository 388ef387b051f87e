"""Write what the documentation takes from the code and from benchmark records. Run: make docs."""

from __future__ import annotations

import sys

from generator.charts import drawn, is_current
from generator.command_line import command_line
from generator.pages import readme, robustness, support
from generator.pictures import PICTURES
from generator.records import ROOT
from generator.results import results
from generator.settings import settings_page
from generator.which import which_method

NOTE = "<!-- Written by docs/build.py; `make docs` writes it again. -->\n\n"


def main() -> None:
    """Write pages and pictures; with --check only compare, and exit with 1 if one is stale."""
    docs = ROOT / "docs"
    reference = docs / "reference"
    pages = {
        reference / "methods.md": NOTE + settings_page(),
        reference / "support.md": NOTE + support(),
        reference / "command_line.md": NOTE + command_line(),
        reference / "results.md": NOTE + results(),
        docs / "which_method.md": which_method(),
        docs / "robustness.md": robustness(),
        ROOT / "README.md": readme(),
    }
    specs = {docs / "images" / f"{name}.svg": picture() for name, picture in PICTURES.items()}
    stale = [p for p, t in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != t]
    undrawn = [path for path, spec in specs.items() if not is_current(path, spec)]
    if "--check" in sys.argv:
        if stale or undrawn:
            names = ", ".join(path.name for path in (*stale, *undrawn))
            sys.exit(f"out of date: {names}. Run: make docs")
        return
    for path in undrawn:
        path.parent.mkdir(exist_ok=True)
        path.write_text(drawn(specs[path]), encoding="utf-8")
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for path in (*undrawn, *stale):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
