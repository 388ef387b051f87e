"""The charts of a report, as SVG: bars, histograms, curves and dots. Plain values in, text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .drawing import COLOURS, HEIGHT_OF_TEXT, label, line, mark, rectangle, svg
from .scale import CHARACTER, Scale, spaced

__all__ = ["Bar", "Point", "Series", "bars", "curve", "dots", "histogram"]

_WIDTH = 860.0
_ROW = 17.0
_LONGEST = 46  # characters of the name of a row
_BINS = 64
_SMALL = (420.0, 170.0)  # a histogram


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: a solid part, and a pale one that goes on from it."""

    name: str
    solid: float
    pale: float
    text: str


@dataclass(frozen=True)
class Point:
    """A point of a curve; ``chosen`` ones have a ring around them."""

    x: float
    y: float
    about: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together, joined by a line from left to right."""

    name: str
    points: Sequence[Point] = field(default_factory=tuple)


def bars(rows: Sequence[Bar], axis: str, legend: tuple[str, str], about: str) -> str:
    """Return one horizontal bar per row, in the given order, with its text behind it."""
    left = _names_width([row.name for row in rows])
    right = _WIDTH - 12 - CHARACTER * max((len(row.text) for row in rows), default=0)
    most = max((row.solid + row.pale for row in rows), default=0) or 1
    scale = Scale(0, most, left, right)
    top, bottom = 26.0, 26 + _ROW * len(rows)
    parts = [rectangle(left, 6, 10, 10), label(left + 15, 15, legend[0])]
    second = left + 35 + CHARACTER * len(legend[0])
    parts += [rectangle(second, 6, 10, 10, pale=True), label(second + 15, 15, legend[1])]
    parts += _bottom_axis(scale, (top, bottom), axis, _grouped, _WIDTH)
    for place, row in enumerate(rows):
        y = top + _ROW * place
        solid, both = scale(row.solid), scale(row.solid + row.pale)
        parts.append(_name(left, y, row.name))
        parts.append(rectangle(left, y + 3, solid - left, _ROW - 5))
        parts.append(rectangle(solid, y + 3, both - solid, _ROW - 5, pale=True))
        parts.append(label(both + 6, y + _ROW - 5, row.text))
    return svg(_WIDTH, bottom + 42, about, parts)


def histogram(counts: Mapping[int, int], axis: str, about: str) -> str:
    """Return the share of every code; codes that are too many for a bar each share bars."""
    width, height = _SMALL
    low, high = min(counts), max(counts)
    per_bar = -(-(high - low + 1) // _BINS)
    shares = [0.0] * ((high - low) // per_bar + 1)
    total = sum(counts.values())
    for code, count in counts.items():
        shares[(code - low) // per_bar] += 100 * count / total
    left, right, top, bottom = 52.0, width - 8, 20.0, height - 40
    x = Scale(low - 0.5, low - 0.5 + per_bar * len(shares), left, right)
    y = Scale(0, max(shares), bottom, top)
    drawn = []
    for place, share in enumerate(shares):
        start = x(low - 0.5 + per_bar * place)
        wide = (right - left) / len(shares)
        if share:
            drawn.append(f"M{start:.1f},{bottom:.0f}V{y(share):.1f}h{0.86 * wide:.2f}V{bottom:.0f}")
    each = "% of the weights" if per_bar == 1 else f"% of the weights, {per_bar} codes per bar"
    ticks = [tick for tick in x.ticks() if tick == int(tick)]
    parts = _bottom_axis(x, (top, bottom), axis, _grouped, width, grid=False, ticks=ticks)
    parts += _left_axis(y, left, right, _short, ticks=y.ticks(3))
    parts.append(f'<path d="{"".join(drawn)}z" fill="{COLOURS[0]}"/>')
    parts.append(label(left, top - 6, each))
    return svg(width, height, about, parts)


def curve(
    series: Sequence[Series],
    x: str,
    y: str,
    about: str,
    *,
    reference: tuple[float, str] | None = None,
) -> str:
    """Return all points of all series over a logarithmic axis, with a dashed line as reference.

    There is at least one point, all numbers are finite, and those on the horizontal axis > 0.
    """
    points = [point for one in series for point in one.points]
    heights = [point.y for point in points] + ([reference[0]] if reference else [])
    left, right, top, bottom = 84.0, _WIDTH - 60, 28.0, 330.0
    across = Scale.around([point.x for point in points], left, right, log=True)
    upward = Scale.around(heights, bottom, top)
    parts = [label(8, 14, y)]
    parts += _left_axis(upward, left, right, _short)
    parts += _bottom_axis(across, (top, bottom), x, _grouped, _WIDTH)
    row = bottom + 60
    if reference is not None:
        at = upward(reference[0])
        parts.append(line(left, at, right, at, dash="5 4"))
        parts += [line(left, row - 4, left + 24, row - 4, dash="5 4")]
        parts.append(label(left + 32, row, reference[1], longest=100))
        row += _ROW
    for place, one in enumerate(series):
        ordered = sorted(one.points, key=lambda point: point.x)
        path = "L".join(f"{across(p.x):.1f},{upward(p.y):.1f}" for p in ordered)
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for point in ordered:
            told = point.about or f"{one.name}: {_grouped(point.x)}, {_short(point.y)}"
            parts.append(mark(across(point.x), upward(point.y), place, told))
            if point.chosen:
                parts.append(_ring(across(point.x), upward(point.y)))
        parts.append(mark(left + 12, row - 4, place))
        parts.append(label(left + 32, row, one.name, longest=100))
        row += _ROW
    return svg(_WIDTH, row, about, parts)


def dots(
    rows: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str], axis: str, about: str
) -> str:
    """Return one row of marks per name, over a logarithmic axis.

    ``rows`` have a value for some of the series ``names``. Values that are zero are drawn hollow,
    at the left edge. All are finite and none is negative.
    """
    left = _names_width([name for name, _ in rows])
    values = [value for _, row in rows for value in row.values() if value > 0]
    inner = left + 16
    scale = Scale.around(values or [1.0], inner, _WIDTH - 24, log=True)
    top, bottom = 26.0, 26 + _ROW * len(rows)
    parts, at = [], left
    for place, name in enumerate(names):
        parts += [mark(at + 5, 11, place), label(at + 15, 15, name)]
        at += 35 + CHARACTER * len(name)
    parts += _bottom_axis(scale, (top, bottom), axis, _short, _WIDTH)
    for count, (name, row) in enumerate(rows):
        y = top + _ROW * count + _ROW / 2
        parts += [_name(left, y - _ROW / 2, name), line(left, y, _WIDTH - 24, y, faint=True)]
        for place, series in enumerate(names):
            if series in row:
                zero = row[series] <= 0
                where = left + 6 if zero else scale(row[series])
                told = f"{name}, {series}: {_short(row[series])}"
                parts.append(mark(where, y, place, told, hollow=zero))
    return svg(_WIDTH, bottom + 42, about, parts)


def _name(left: float, y: float, name: str) -> str:
    return label(left - 8, y + _ROW - 5, name, "end", longest=_LONGEST)


def _names_width(names: Sequence[str]) -> float:
    longest = max((min(len(name), _LONGEST) for name in names), default=0)
    return 16 + CHARACTER * longest


def _ring(x: float, y: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="currentColor" '
        'stroke-width="1.5"/>'
    )


def _bottom_axis(
    scale: Scale,
    plot: tuple[float, float],
    title: str,
    text: Callable[[float], str],
    width: float,
    *,
    grid: bool = True,
    ticks: Sequence[float] | None = None,
) -> list[str]:
    """Return the axis below a ``plot`` (top, bottom) in a picture of this ``width``."""
    top, bottom = plot
    placed = spaced(scale, scale.ticks() if ticks is None else ticks, text, 0, width)
    parts = [line(scale.start, bottom, scale.end, bottom)]
    for at, told in placed:
        if grid:
            parts.append(line(at, top, at, bottom, faint=True))
        parts.append(line(at, bottom, at, bottom + 4))
        parts.append(label(at, bottom + 6 + HEIGHT_OF_TEXT, told, "middle"))
    middle = (scale.start + scale.end) / 2
    return [*parts, label(middle, bottom + 22 + HEIGHT_OF_TEXT, title, "middle", longest=90)]


def _left_axis(
    scale: Scale,
    left: float,
    right: float,
    text: Callable[[float], str],
    *,
    ticks: Sequence[float] | None = None,
) -> list[str]:
    parts = [line(left, scale.start, left, scale.end)]
    for tick in scale.ticks() if ticks is None else ticks:
        at = scale(tick)
        parts.append(line(left, at, right, at, faint=True))
        parts.append(label(left - 6, at + 4, text(tick), "end"))
    return parts


def _grouped(value: float) -> str:
    """Format a count: 12,000."""
    return f"{value:,.0f}"


def _short(value: float) -> str:
    """Format a measurement: 0.9812, 1e-05."""
    return "0" if math.isclose(value, 0, abs_tol=1e-300) else f"{value:.6g}"
