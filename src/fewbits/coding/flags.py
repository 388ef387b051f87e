"""A matrix as flags, and what each flag's chance depends on: the model of ``binary``.

A symbol is a flag "not the centre", a sign, and its magnitude in unary. Each flag is predicted
from five contexts: its column, its row, the energies of both, magnitudes and signs around it. In
a row that is a picture or a kernel, "around" has a second direction, ``width`` columns back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .mixing import Flag, Take, mixer, weight_set

__all__ = ["CELLS", "MOST_PACE", "Shape", "walk"]

MOST_PACE = 15
KINDS = 15  # of flags: not the centre, sign, magnitude over 1, 2, ... 13 and more
AROUND, BESIDE, CELLS = 257, 769, 1025  # where contexts of a kind begin, after its columns

Tail: TypeAlias = Callable[[int, int, int, list[int]], int]


@dataclass(frozen=True)
class Shape:
    """How a matrix is walked: ``rows`` of ``columns`` places in [0, ``size``).

    Attributes:
        centre: the place that is coded as "nothing".
        width: columns to the row above in a picture or kernel; 0 if rows are neither.
        pace: how fast weights move at last, in [1, 15].
    """

    rows: int
    columns: int
    size: int
    centre: int
    width: int
    pace: int


def walk(known: list[int], shape: Shape, take: Take) -> list[int]:
    """Code the places of ``shape``, in row order, and return them.

    ``known``: the places, or as many zeros for a decoder. Cost: 2 to 3 microseconds for a flag.
    """
    columns, centre, width = shape.columns, shape.centre, shape.width
    span = columns + CELLS
    states = [0] * (KINDS * span)
    flag = mixer(states, shape.pace, take)
    tail = _tail(shape, flag, span)
    signs, steps, some, few, _, power = _views(shape)
    weights, classes = [weight_set() for _ in range(4)], _energy_classes()
    energies, history = [0] * columns, [0] * columns
    margin = max(2, width + 1)
    above, out = [centre] * (columns + margin), []
    for row in range(shape.rows):
        states[columns::span] = [0] * KINDS
        line, energy, share = [centre] * margin, 64, min(row + 2, 24)
        corner = upper = other = centre
        for column in range(columns):
            left, over = line[-1], above[column + margin]
            if width:
                corner, upper, other = upper, other, line[1 - width]
            level = 16 * classes[energies[column] >> 4] + classes[energy >> 4]
            place = known[row * columns + column]
            filled = flag(
                weights[some[left] + some[upper] + some[over]],
                column,
                columns,
                columns + 1 + level,
                columns + AROUND + history[column]
                + 16 * few[upper] + 48 * few[left] + 144 * some[other],
                columns + BESIDE + steps[left] + 5 * steps[upper] + 25 * signs[corner],
                place != centre,
            )  # fmt: skip
            around = [left, line[-2], over, corner, upper, other]
            place = tail(place, column, level, around) if filled else centre
            history[column] = history[column] << 1 & 15 | filled
            line.append(place)
            energies[column] += (power[place] - energies[column]) // share
            energy += (power[place] - energy) >> 5
        above = line
        out += line[margin:]
    return out


def _tail(shape: Shape, flag: Flag, span: int) -> Tail:
    """Return a function (known place, column, level, places around) that codes what is not 0."""
    columns, size, centre = shape.columns, shape.size, shape.centre
    signs, steps, _, _, seven, _ = _views(shape)
    weights = [weight_set() for _ in range(KINDS)]
    both = 0 < centre < size - 1

    def tail(known: int, column: int, level: int, around: list[int]) -> int:
        left, second, over, corner, upper, other = around
        positive = int(centre == 0)
        at_left, at_upper = signs[left], signs[upper]
        if both:
            base = span + columns
            positive = flag(
                weights[1],
                span + column,
                base,
                base + 1 + steps[left] + 5 * steps[upper] + 25 * signs[over],
                base + AROUND + at_upper + 3 * signs[corner] + 9 * signs[other] + 27 * at_left,
                base + BESIDE + at_left + 3 * signs[over] + 9 * at_upper + 27 * signs[second],
                known > centre,
            )
        own = 2 * positive
        last, magnitude = (size - 1 - centre if positive else centre), abs(known - centre)
        around_cell = AROUND + 64 * seven[left] + 8 * seven[over] + seven[upper]
        beside_cell = BESIDE + 128 * positive
        beside_cell += 8 * seven[left] * (at_left == own) + seven[upper] * (at_upper == own)
        found = 1
        while found < last:
            kind = min(found, 13) + 1
            base = kind * span + columns
            if not flag(
                weights[kind], base - columns + column, base, base + 1 + level,
                base + around_cell, base + beside_cell, magnitude > found,
            ):  # fmt: skip
                break
            found += 1
        return centre + found if positive else centre - found

    return tail


def _views(shape: Shape) -> tuple[list[int], ...]:
    """Return what contexts see of each place: sign, value up to 2, magnitude up to 1, 2, 7; power.

    Sign and value are shifted to begin at 0; the power is that of the energies, in 1/256.
    """
    values = [place - shape.centre for place in range(shape.size)]
    return (
        [(v > 0) - (v < 0) + 1 for v in values],
        [min(2, max(-2, v)) + 2 for v in values],
        *([min(abs(v), most) for v in values] for most in (1, 2, 7)),
        [256 * min(abs(v), 15) for v in values],
    )


def _energy_classes() -> list[int]:
    """Return the class of each energy 0 to 255: how often it loses a third before it is 0."""
    found = [0]
    for energy in range(1, 256):
        found.append(min(15, found[2 * energy // 3] + 1))
    return found
