"""A page of sections: one HTML file without scripts, links or anything from elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from ...coded import escaped
from ...errors import ConfigError
from ...files.atomic_write import check_target, write
from ..table import Column, Table

__all__ = [
    "Chart",
    "Folded",
    "Page",
    "Part",
    "Section",
    "check_report",
    "facts_table",
    "html_of",
    "versions",
]

_LONG = 40  # rows of a table that is folded
_MOST = 5000  # rows of a table
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --faint: #57606a;
  --line: #d0d7de; --box: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117;
  --faint: #9198a1; --line: #3d444d; --box: #151b23; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif;
  max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid var(--line); }
p, li, td { overflow-wrap: anywhere; }
p { white-space: pre-wrap; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 10px 2px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
figure { margin: 1em 0; }
figcaption { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 8px; }
.wide { overflow-x: auto; }
details { background: var(--box); border: 1px solid var(--line); padding: 6px 12px;
  margin: 0.8em 0; }
summary { cursor: pointer; }
""".strip()


@dataclass(frozen=True)
class Chart:
    """A picture with a line below it; ``small`` ones stand side by side."""

    svg: str
    caption: str = ""
    small: bool = False


@dataclass(frozen=True)
class Folded:
    """Parts behind a line that opens when it is clicked."""

    title: str
    parts: Sequence[Part]
    open: bool = False


Part: TypeAlias = str | Table | Chart | Folded


@dataclass(frozen=True)
class Section:
    """Parts below a heading; a section without parts is left out."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A report: plain data, which :meth:`html` writes out."""

    title: str
    sections: tuple[Section, ...]

    def with_first(self, *sections: Section) -> Page:
        """Return the page with sections before all others."""
        return replace(self, sections=(*sections, *self.sections))

    def with_last(self, *sections: Section) -> Page:
        """Return the page with sections after all others."""
        return replace(self, sections=(*self.sections, *sections))

    def section(self, title: str) -> Section:
        """Return the section with this title."""
        return next(one for one in self.sections if one.title == title)

    def html(self) -> str:
        """Return the file. All text is escaped: names in a network may contain markup."""
        body = "\n".join(
            f"<section>\n<h2>{escaped(one.title)}</h2>\n{html_of(one.parts)}\n</section>"
            for one in self.sections
            if one.parts
        )
        title = escaped(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )

    def write(self, path: str | PathLike[str]) -> int:
        """Write the file atomically, replacing an old one, and return its length in bytes.

        Raises:
            ConfigError: as :func:`check_report`.
            OSError: the system cannot write there.
        """
        check_report(path)
        content = self.html().encode()
        write(content, Path(path))
        return len(content)


def check_report(path: str | PathLike[str]) -> None:
    """Refuse, before any work is done, a report that cannot be written.

    Raises:
        ConfigError: the name does not end in .html; the folder does not exist; or the path is a
            folder, a device, a FIFO or a socket.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"report {str(path)!r} must end in .html.")
    if not path.parent.is_dir():
        raise ConfigError(f"report folder {str(path.parent)!r} does not exist. Create it first.")
    if path.is_dir():
        raise ConfigError(f"report {str(path)!r} is a folder. Name a file instead.")
    check_target(path)


def facts_table(facts: Mapping[str, object]) -> Table:
    """Return one line per fact that is known: its name and its value."""
    known = {name: value for name, value in facts.items() if value not in (None, "", ())}
    rows = tuple((name, str(value)) for name, value in known.items())
    return Table((Column("setting"), Column("value")), rows)


def versions() -> Section:
    """Return what made the report: fewbits, what it runs on, and the system."""
    found = {"Python": platform.python_version(), "system": platform.platform()}
    for name in ("fewbits", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source
            found[name] = "not installed as a package"
    rows = tuple(sorted(found.items(), key=lambda one: one[0].lower()))
    return Section("Versions", (Table((Column("package"), Column("version")), rows),))


def html_of(parts: Sequence[Part]) -> str:
    """Return the HTML of parts, for a place inside any page."""
    return "\n".join(_grouped(parts))


def _grouped(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the parts, small charts that follow each other in one grid."""
    small: list[str] = []
    for part in parts:
        if isinstance(part, Chart) and part.small:
            small.append(_part(part))
            continue
        if small:
            yield _grid(small)
            small = []
        yield _part(part)
    if small:
        yield _grid(small)


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{'<br>'.join(escaped(line) for line in part.splitlines())}</p>"
    if isinstance(part, Chart):
        told = f"<figcaption>{escaped(part.caption)}</figcaption>" if part.caption else ""
        return f'<figure><div class="wide">{part.svg}</div>{told}</figure>'
    if isinstance(part, Folded):
        is_open = " open" if part.open else ""
        head = f"<summary>{escaped(part.title)}</summary>"
        return f"<details{is_open}>{head}\n{html_of(part.parts)}\n</details>"
    drawn = f'<div class="wide">{part.html(most=_MOST)}</div>'
    if len(part.rows) <= _LONG:
        return drawn
    return f"<details><summary>{len(part.rows):,} rows</summary>{drawn}</details>"
