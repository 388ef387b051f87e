"""Reports as a reader has them: parsed strictly, their pictures measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

__all__ = ["Parsed", "check_picture", "labels"]

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "p", "br", "div"),
    *("table", "tr", "th", "td", "b", "figure", "figcaption", "details", "summary"),
    *("svg", "text", "line", "rect", "path", "circle"),
}


class Parsed(HTMLParser):
    """The text and the pictures of a page that is closed, nested well and loads nothing."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []
        found = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
        self.pictures = [ElementTree.fromstring(one) for one in found]
        loose = source.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//|url\(|@import|\bsrc=|\bhref=|\bon\w+=", _tags(loose))

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED, tag
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ALLOWED, tag
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _tags(source: str) -> str:
    """What a browser obeys: tags and style sheets, without the text between them."""
    return " ".join(re.findall(r"<[^>]*>|<style>.*?</style>", source, re.DOTALL))


def labels(picture) -> list[str]:
    """The text of a picture, in the order in which it is drawn."""
    return [_own_text(one) for one in picture.iter(f"{SVG}text")]


def check_picture(picture) -> None:
    """Nothing is drawn outside, and no two labels are on top of each other."""
    _, _, width, height = map(float, picture.get("viewBox").split())
    boxes = [_box(one) for one in picture.iter(f"{SVG}text")]
    for kind in ("line", "rect", "circle"):
        boxes += [_extent(one) for one in picture.iter(f"{SVG}{kind}")]
    boxes += [(x, y, x, y) for one in picture.iter(f"{SVG}path") for x, y in path_points(one)]
    for x1, y1, x2, y2 in boxes:
        assert -0.5 <= x1 <= x2 <= width + 0.5, (x1, x2, width)
        assert -0.5 <= y1 <= y2 <= height + 0.5, (y1, y2, height)
    texts = [(_box(one), _own_text(one)) for one in picture.iter(f"{SVG}text")]
    for place, (one, first) in enumerate(texts):
        for other, second in texts[:place]:
            apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3]
            assert apart or other[1] >= one[3], (first, second)


def path_points(path) -> list[tuple[float, float]]:
    """The points that a path goes through; of a mark, its place."""
    moved = path.get("transform")
    if moved:
        return [tuple(map(float, re.findall(r"-?[\d.]+", moved)))]
    points, x, y = [], 0.0, 0.0
    for step, numbers in re.findall(r"([MLVh])([-\d.,]*)", path.get("d")):
        values = [float(number) for number in numbers.split(",")]
        if step in "ML":
            x, y = values
        elif step == "V":
            y = values[0]
        else:
            x += values[0]
        points.append((x, y))
    return points


def _own_text(element) -> str:
    title = element.find(f"{SVG}title")
    return (element.text or "") + ((title.tail or "") if title is not None else "")


def _box(element) -> tuple[float, float, float, float]:
    x, y, wide = float(element.get("x")), float(element.get("y")), 6.6 * len(_own_text(element))
    start = x - {"middle": wide / 2, "end": wide}.get(element.get("text-anchor"), 0)
    return start, y - 8, start + wide, y + 2


def _extent(element) -> tuple[float, float, float, float]:
    value = {name: float(text) for name, text in element.items() if re.fullmatch(r"[\d.]+", text)}
    if "x1" in value:
        xs, ys = sorted([value["x1"], value["x2"]]), sorted([value["y1"], value["y2"]])
        return xs[0], ys[0], xs[1], ys[1]
    if "cx" in value:
        return value["cx"], value["cy"], value["cx"], value["cy"]
    x, y = value["x"], value["y"]
    return x, y, x + value["width"], y + value["height"]
