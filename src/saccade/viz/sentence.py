"""Attention in a sentence as a picture (arcs over the words, and the matrix) and as lines for a terminal. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.models.text_tokens import columns, printable
from saccade.viz.drawing import Curve, Drawing, Ink, Raster, Rect, Shape, Text, width_of

WIDE = 860.0
SIZE, SPACE, HEAD_ROOM, LINE_GAP = 15.0, 7.0, 92.0, 34.0
MOST_LABELS = 64  # words up to which every row and column of the matrix is named
DRAWN_FROM = 0.02  # arcs thinner than this share of the thickest would be dust


@dataclass(frozen=True)
class SentenceMap:
    """Which word looks at which.

    names    the words, or tokens, in order          special  True for those that the tokenizer added
    weights  [H W W] float, rows ask, every row sums to 1
    query    the word that asks; None: all of them
    hidden   whether special tokens are left out of pictures; their share is said
    title    model, layer and head in words
    """

    names: tuple[str, ...]
    special: tuple[bool, ...]
    weights: np.ndarray
    query: int | None
    hidden: bool
    title: str

    @property
    def mean(self) -> np.ndarray:
        return self.weights.mean(axis=0)

    def shown(self) -> list[int]:
        """Numbers of the words that are drawn; a special token that asks itself always is."""
        return [i for i, s in enumerate(self.special) if not (s and self.hidden) or i == self.query]

    def unseen(self) -> str:
        """What of the attention is not drawn, in words; empty where all is."""
        left = [i for i in range(len(self.names)) if i not in self.shown()]
        if not left:
            return ""
        rows = self.shown() if self.query is None else [self.query]
        share = float(self.mean[np.ix_(rows, left)].sum(axis=1).mean())
        who = " and ".join(dict.fromkeys(self.names[i] for i in left))
        return f"{percent(share)} goes to {who}, not drawn"


def percent(share: float) -> str:
    """0.1234 to "12.3 %"; what is not zero never reads as zero."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


# --- terminal --------------------------------------------------------------------------------------


def lines(sentence: SentenceMap, bar: int = 32) -> list[str]:
    """The words with their shares and bars of text characters; without a query, where each word looks most."""
    if sentence.query is None:
        return _strongest(sentence)
    row, shown = sentence.mean[sentence.query], sentence.shown()
    names = [printable(sentence.names[i]) for i in shown]
    room = max(columns(name) for name in names)
    most = max(float(row[shown].max()), 1e-12)
    many = len(sentence.weights) > 1
    found = [f"“{printable(sentence.names[sentence.query])}” looks at:"]
    for i, name in zip(shown, names):
        asks = ">" if i == sentence.query else " "
        length = round(bar * float(row[i]) / most)
        head = int(sentence.weights[:, sentence.query, i].argmax())
        best = f"  head {head}: {percent(float(sentence.weights[head, sentence.query, i]))}" if many else ""
        filled = "#" * length + "." * (bar - length)
        found.append(f"{asks} {i:3d} {name}{' ' * (room - columns(name))} {percent(float(row[i])):>8} {filled}{best}")
    return found


def _strongest(sentence: SentenceMap, most: int = 3) -> list[str]:
    shown, mean = sentence.shown(), sentence.mean
    names = {i: printable(sentence.names[i]) for i in shown}
    room = max(columns(name) for name in names.values())
    found = ["each word looks most at:"]
    for i in shown:
        best = sorted(shown, key=lambda j: -mean[i, j])[:most]
        words = ", ".join(f"{names[j]} {percent(float(mean[i, j]))}" for j in best if mean[i, j] > 0)
        found.append(f"  {i:3d} {names[i]}{' ' * (room - columns(names[i]))}  {words}")
    return found


# --- picture ---------------------------------------------------------------------------------------


def draw(sentence: SentenceMap) -> Drawing:
    """Arcs from the word that asks, when one does; below, who looks at whom; below that, every head by itself."""
    shapes: list[Shape] = [Text(0, 18, sentence.title, 15, bold=True)]
    said = [s for s in (_asks(sentence), sentence.unseen()) if s]
    shapes.append(Text(0, 38, " · ".join(said), 12.5, "soft"))
    y = 52.0
    if sentence.query is not None:
        arcs, y = _arcs(sentence, y)
        shapes += arcs
    matrix, y = _matrix(sentence, y + 12)
    shapes += matrix
    if len(sentence.weights) > 1:
        heads, y = _heads(sentence, y + 26)
        shapes += heads
    return Drawing(WIDE, y + 8, tuple(shapes), sentence.title, "; ".join([*said, *_best(sentence)]))


def _asks(sentence: SentenceMap) -> str:
    if sentence.query is None:
        return ""
    return f"“{sentence.names[sentence.query]}” asks"


def _best(sentence: SentenceMap) -> list[str]:
    """For readers who cannot see the picture."""
    if sentence.query is None:
        return []
    row = sentence.mean[sentence.query]
    best = sorted(sentence.shown(), key=lambda i: -row[i])[:5]
    return [f"{sentence.names[i]} {percent(float(row[i]))}" for i in best]


def _arcs(sentence: SentenceMap, top: float) -> tuple[list[Shape], float]:
    """The sentence set in lines, and a curve from the asking word to every word, as thick as its share."""
    assert sentence.query is not None
    shown, row = sentence.shown(), sentence.mean[sentence.query]
    places, bottom = _set_in_lines([sentence.names[i] for i in shown], top)
    most = max(float(row[shown].max()), 1e-12)
    asking = places[shown.index(sentence.query)]
    curves: list[Shape] = []
    letters: list[Shape] = []
    for i, place in zip(shown, places):
        strength = float(row[i]) / most
        letters += _word(sentence.names[i], place, strength, asks=i == sentence.query, share=float(row[i]))
        if strength >= DRAWN_FROM and i != sentence.query:
            curves.append(_curve(asking, place, strength))
    return curves + letters, bottom


Place = tuple[float, float, float]  # x of the middle, y of the base line, width


def _set_in_lines(names: Sequence[str], top: float) -> tuple[list[Place], float]:
    x, y, places = 0.0, top + HEAD_ROOM, []
    for name in names:
        wide = max(width_of(name, SIZE), 30.0)  # the share below needs room
        if x and x + wide > WIDE:
            x, y = 0.0, y + HEAD_ROOM + LINE_GAP
        places.append((x + wide / 2, y, wide))
        x += wide + SPACE
    return places, y + LINE_GAP


def _word(name: str, place: Place, strength: float, *, asks: bool, share: float) -> list[Shape]:
    x, y, wide = place
    shapes: list[Shape] = [Rect(x - wide / 2 - 2, y - SIZE, wide + 4, SIZE + 5, opacity=0.45 * strength)]
    if asks:
        shapes.append(Rect(x - wide / 2 - 2, y - SIZE, wide + 4, SIZE + 5, "mark", edge=1.5))
    shapes.append(Text(x, y, name, SIZE, anchor="middle"))
    shapes.append(Text(x, y + 19, percent(share).replace(" ", ""), 9.5, "soft", "middle"))
    return shapes


def _curve(start: Place, end: Place, strength: float) -> Curve:
    height = min(HEAD_ROOM * 1.2, 24 + abs(end[0] - start[0]) * 0.42)
    a, b = (start[0], start[1] - SIZE - 1), (end[0], end[1] - SIZE - 1)
    points = (a, (a[0], a[1] - height), (b[0], b[1] - height), b)
    return Curve(points, 0.6 + 7 * strength, 0.25 + 0.5 * strength)


def _matrix(sentence: SentenceMap, top: float) -> tuple[list[Shape], float]:
    shown = sentence.shown()
    weights = sentence.mean[np.ix_(shown, shown)]
    count, most = len(shown), max(float(weights.max()), 1e-12)
    labelled = count <= MOST_LABELS
    room = min(200.0, max(width_of(sentence.names[i], 12) for i in shown) + 10) if labelled else 0.0
    cell = min(24.0, (WIDE - room - 170) / count)
    size = cell * count
    head = room * 0.87 + 6 if labelled else 8.0
    y = top + head
    key = room + size + 24
    shapes: list[Shape] = [
        Text(key, y + 12, "rows ask, columns answer", 12, "soft"),
        Rect(room, y, size, size, "soft", 0.06),
        Raster(room, y, size, size, np.sqrt(weights / most)),
    ]
    letters = min(12.0, cell - 1)
    for n, i in enumerate(shown if labelled else []):
        ink: Ink = "mark" if i == sentence.query else "ink"
        middle = (n + 0.5) * cell + letters * 0.36
        shapes.append(Text(room - 6, y + middle, sentence.names[i], letters, ink, "end"))
        shapes.append(Text(room + middle, y - 5, sentence.names[i], letters, ink, steep=True))
    if sentence.query is not None:
        shapes.append(Rect(room, y + shown.index(sentence.query) * cell, size, cell, "mark", edge=1.2))
    return [*shapes, *_key(key, y + 24, most)], y + size


def _key(x: float, y: float, most: float) -> list[Shape]:
    """What a shade means; shades go by the square root, so that small shares can be told from none."""
    shapes: list[Shape] = []
    for n, part in enumerate((1.0, 0.25, 0.04, 0.0)):
        shapes.append(Rect(x, y + 24 * n, 16, 16, "soft", 0.06))
        shapes.append(Raster(x, y + 24 * n, 16, 16, np.full((1, 1), math.sqrt(part))))
        shapes.append(Text(x + 24, y + 24 * n + 12.5, percent(part * most), 12, "soft"))
    return shapes


def _heads(sentence: SentenceMap, top: float) -> tuple[list[Shape], float]:
    """A small matrix for every head, each with its own darkest cell."""
    shown = sentence.shown()
    side, gap, across = 122.0, 24.0, 6
    shapes: list[Shape] = [Text(0, top + 12, "Each head by itself", 13, bold=True)]
    y = top + 30
    for head, whole in enumerate(sentence.weights):
        weights = whole[np.ix_(shown, shown)]
        most = max(float(weights.max()), 1e-12)
        x, down = head % across * (side + gap), y + head // across * (side + 44)
        shapes.append(Rect(x, down, side, side, "soft", 0.06))
        shapes.append(Raster(x, down, side, side, np.sqrt(weights / most)))
        shapes.append(Text(x, down + side + 15, f"head {head} · up to {percent(most)}", 11, "soft"))
    rows = -(-len(sentence.weights) // across)
    return shapes, y + rows * (side + 44) - 18
