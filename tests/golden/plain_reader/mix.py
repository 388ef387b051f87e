"""SPEC.md 4.6: matrices whose symbols are flags with chances that are learnt."""

import math
from dataclasses import dataclass, replace

from .bits import Bits
from .expect import Walk, first_means, is_kernel, neighbours
from .fields import need
from .flags import Model
from .functions import USUAL
from .regression import Regression


@dataclass(frozen=True)
class Settings:
    usual: int
    lowest: int
    size: int
    centre: int
    period: int
    shift: int
    pictures: int


def settings(source, before):
    """Return the settings of the next matrix."""
    mark = source.byte()
    need(mark % 64 <= 52 and mark < (64 if before is None else 128), "a mark is out of bounds")
    if mark >= 64:
        return replace(before, usual=USUAL[mark - 64])
    lowest, size, centre = source.symbol(), source.varint(), source.varint()
    need(lowest + size < 2**31 and centre <= size, "an alphabet is out of bounds")
    form = source.byte()
    pictures, shift, period = form // 128, form % 128 // 4, form % 4
    need(period >= 1 and shift <= 27, "a period or a shift is out of bounds")
    return Settings(USUAL[mark], lowest, size, lowest + centre, period, shift, pictures)


def mix(source, layouts, trellis=False):
    """Return the symbols of each matrix, row by row; 4.7 if they follow the trellis."""
    told = []
    for _ in layouts:
        told.append(settings(source, told[-1] if told else None))
        if trellis:
            plain = told[-1].centre == 0 and told[-1].period == 1 and not told[-1].pictures
            parities = told[-1].lowest < 0 < told[-1].lowest + told[-1].size
            need(plain and parities, "settings are not those of a trellis")
    rest = source.rest()
    model, length = Model(Bits(rest)), len(rest)
    distances = [Regression([8192, 0, 0, 0, 8192, 0, 0, 0], 14, 2**20) for _ in range(2)]
    means, out = {}, []
    for place, (layout, setting) in enumerate(zip(layouts, told, strict=True)):
        if setting.pictures:
            layout = replace(layout, taps=1, width=math.isqrt(layout.columns))  # noqa: PLW2901
        key = layout.taps, layout.width
        if key in means:
            for regression in means[key]:
                regression.fade()
        else:
            near = neighbours(*key)
            first = first_means(*key, near)
            means[key] = [Regression(weights, 16, 100) for weights in first]
        if place:
            model.next_matrix()
            for regression in distances:
                regression.fade()
        walk = Walk(layout, setting, model, means[key], distances, trellis=trellis)
        out.append(walk.symbols(neighbours(*key), is_kernel(*key)))
    need(model.flags <= 4 * sum(map(len, out)) + 64 * length, "there are too many flags")
    model.bits.end()
    return out
