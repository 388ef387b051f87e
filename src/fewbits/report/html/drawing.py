"""SVG elements: text that cannot break out of its place, in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Iterable

from ...coded import escaped, shortened

__all__ = ["COLOURS", "HEIGHT_OF_TEXT", "label", "line", "mark", "rectangle", "svg"]

COLOURS = ("#1f77b4", "#d9541e", "#2a9d5c", "#a8539c", "#b07d12", "#5b7f8f")
HEIGHT_OF_TEXT = 11
_FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_MARKS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.6L4.6,3.4H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M-4.6,-3.4H4.6L0,4.6z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)


def svg(width: float, height: float, about: str, parts: Iterable[str]) -> str:
    """Return a picture whose text and lines have the colour of the text around it."""
    told = escaped(about)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{told}" '
        f'font-family="{_FONT}" font-size="{HEIGHT_OF_TEXT}" fill="currentColor" '
        f'style="max-width: 100%; height: auto"><title>{told}</title>{"".join(parts)}</svg>'
    )


def label(x: float, y: float, text: str, anchor: str = "start", *, longest: int = 60) -> str:
    """Return text whose baseline is at ``y``; what is cut short is told when pointed at."""
    short = shortened(text, longest)
    title = f"<title>{escaped(text)}</title>" if len(text) > longest else ""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{side}>{title}{escaped(short)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, faint: bool = False, dash: str = "") -> str:
    """Return a straight line."""
    opacity = ' stroke-opacity="0.15"' if faint else ' stroke-opacity="0.6"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor"'
        f"{opacity}{dashes}/>"
    )


def rectangle(x: float, y: float, width: float, height: float, *, pale: bool = False) -> str:
    """Return a filled rectangle in the first colour."""
    opacity = ' fill-opacity="0.4"' if pale else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}" '
        f'fill="{COLOURS[0]}"{opacity}/>'
    )


def mark(x: float, y: float, place: int, about: str = "", *, hollow: bool = False) -> str:
    """Return the mark of a series, which has its own shape and colour."""
    colour = COLOURS[place % len(COLOURS)]
    title = f"<title>{escaped(about)}</title>" if about else ""
    fill = f'fill="none" stroke="{colour}" stroke-width="1.5"' if hollow else f'fill="{colour}"'
    shape = _MARKS[place % len(_MARKS)]
    return f'<path transform="translate({x:.1f},{y:.1f})" d="{shape}" {fill}>{title}</path>'
