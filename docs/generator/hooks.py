"""Hooks of MkDocs: pages that come from the code or live elsewhere in the repository.

Links of the pages are those of the repository, so that they work where it is browsed. Here they are
turned into links of the site; one to a file that the site lacks becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from generator.api import api  # noqa: E402  (the folder is no package that is installed)

__all__ = ["elsewhere", "on_files", "on_page_markdown"]

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def elsewhere() -> dict[str, str]:
    """Return what the site takes from outside of ``docs``: path in the repository to page."""
    (specification,) = sorted((ROOT / "src").glob("**/SPEC.md"))
    pages = {
        specification.relative_to(ROOT).as_posix(): "reference/format.md",
        "benchmarks/README.md": "benchmarks.md",
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "SECURITY.md": "security.md",
        "README.md": "index.md",
    }
    for record in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        pages[record.relative_to(ROOT).as_posix()] = f"records/{record.name}"
    return pages


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages from elsewhere, the records, and the API reference."""
    for path, page in elsewhere().items():
        if page != "index.md":
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/api.md", content=api()))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    here = page.file.src_uri
    places = elsewhere()
    origin = {site: path for path, site in places.items() if site != "index.md"}.get(
        here, f"docs/{here}"
    )

    def turn(found: re.Match[str]) -> str:
        image, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        site = places.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if site and files.get_file_from_path(site) is not None:
            link = posixpath.relpath(site, posixpath.dirname(here) or ".")
            return f"{image}[{text}]({link}{anchor})"
        if not (ROOT / path).exists():
            return found[0]  # MkDocs warns of it, and a warning is an error
        return text

    return "".join(
        part if part.startswith("```") else _LINK.sub(turn, part) for part in _FENCE.split(markdown)
    )
