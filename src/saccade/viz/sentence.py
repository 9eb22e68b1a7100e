"""Attention in a sentence as a picture (arcs over the words, and the matrix) and as text for a terminal. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.models.text_tokens import columns, printable
from saccade.viz.drawing import Bezier, Drawing, Ink, Raster, Rect, Shape, TextLine, width_of

WIDE = 860.0
SIZE, SPACE, HEAD_ROOM, LINE_GAP = 15.0, 7.0, 92.0, 34.0
MOST_LABELS = 64  # with more words the rows and columns of the matrix have no names
DRAWN_FROM = 0.02  # thinner arcs, relative to the thickest, are not drawn


@dataclass(frozen=True)
class SentenceMap:
    """Attention between the words of a sentence.

    Parameters
    ----------
    names : tuple of str
        The words, or tokens, in order.
    special : tuple of bool
        True for those that the tokenizer added.
    weights : ndarray
        [H W W] float; rows are queries, each sums to 1.
    query : int, optional
        The query word; None is all of them.
    hidden : bool
        Special tokens are left out of pictures; their weight is stated.
    title : str
        Model, layer and head.
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

    def drawn_words(self) -> list[int]:
        """Indices of the drawn words; a special token that is the query is drawn."""
        return [i for i, s in enumerate(self.special) if not (s and self.hidden) or i == self.query]

    def hidden_note(self) -> str:
        """How much attention is not drawn, in words; empty where all is."""
        left = [i for i in range(len(self.names)) if i not in self.drawn_words()]
        if not left:
            return ""
        rows = self.drawn_words() if self.query is None else [self.query]
        share = float(self.mean[np.ix_(rows, left)].sum(axis=1).mean())
        who = " and ".join(dict.fromkeys(self.names[i] for i in left))
        return f"{percent(share)} goes to {who}, not drawn"


def percent(share: float) -> str:
    """0.1234 to "12.3 %"; what is not zero never prints as zero.

    Examples
    --------
    >>> percent(0.1234), percent(0.0001)
    ('12.3 %', '< 0.1 %')
    """
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


# --- terminal --------------------------------------------------------------------------------------


def lines(sentence: SentenceMap, bar: int = 32) -> list[str]:
    """The words with their weights and bars of text characters; without a query, each word's strongest keys."""
    if sentence.query is None:
        return _strongest(sentence)
    row, drawn = sentence.mean[sentence.query], sentence.drawn_words()
    names = [printable(sentence.names[i]) for i in drawn]
    room = max(columns(name) for name in names)
    most = max(float(row[drawn].max()), 1e-12)
    many = len(sentence.weights) > 1
    text_lines = [f"attention of “{printable(sentence.names[sentence.query])}”:"]
    for i, name in zip(drawn, names):
        asks = ">" if i == sentence.query else " "
        length = round(bar * float(row[i]) / most)
        head = int(sentence.weights[:, sentence.query, i].argmax())
        best = f"  head {head}: {percent(float(sentence.weights[head, sentence.query, i]))}" if many else ""
        filled = "#" * length + "." * (bar - length)
        text_lines.append(
            f"{asks} {i:3d} {name}{' ' * (room - columns(name))} {percent(float(row[i])):>8} {filled}{best}"
        )
    return text_lines


def _strongest(sentence: SentenceMap, most: int = 3) -> list[str]:
    drawn, mean = sentence.drawn_words(), sentence.mean
    names = {i: printable(sentence.names[i]) for i in drawn}
    room = max(columns(name) for name in names.values())
    text_lines = ["strongest keys of each word:"]
    for i in drawn:
        best = sorted(drawn, key=lambda j: -mean[i, j])[:most]
        words = ", ".join(f"{names[j]} {percent(float(mean[i, j]))}" for j in best if mean[i, j] > 0)
        text_lines.append(f"  {i:3d} {names[i]}{' ' * (room - columns(names[i]))}  {words}")
    return text_lines


# --- picture ---------------------------------------------------------------------------------------


def draw(sentence: SentenceMap) -> Drawing:
    """Arcs from the query word, if there is one; below, the attention matrix, and the matrix of every head."""
    shapes: list[Shape] = [TextLine(0, 18, sentence.title, 15, bold=True)]
    notes = [s for s in (_query_text(sentence), sentence.hidden_note()) if s]
    shapes.append(TextLine(0, 38, " · ".join(notes), 12.5, "soft"))
    y = 52.0
    if sentence.query is not None:
        arcs, y = _arcs(sentence, y)
        shapes += arcs
    matrix, y = _matrix(sentence, y + 12)
    shapes += matrix
    if len(sentence.weights) > 1:
        heads, y = _heads(sentence, y + 26)
        shapes += heads
    return Drawing(WIDE, y + 8, tuple(shapes), sentence.title, "; ".join([*notes, *_best(sentence)]))


def _query_text(sentence: SentenceMap) -> str:
    if sentence.query is None:
        return ""
    return f"query: “{sentence.names[sentence.query]}”"


def _best(sentence: SentenceMap) -> list[str]:
    """For screen readers."""
    if sentence.query is None:
        return []
    row = sentence.mean[sentence.query]
    best = sorted(sentence.drawn_words(), key=lambda i: -row[i])[:5]
    return [f"{sentence.names[i]} {percent(float(row[i]))}" for i in best]


def _arcs(sentence: SentenceMap, top: float) -> tuple[list[Shape], float]:
    """The sentence in lines, and a curve from the query to every word, as thick as its weight."""
    assert sentence.query is not None
    drawn, row = sentence.drawn_words(), sentence.mean[sentence.query]
    positions, bottom = _set_in_lines([sentence.names[i] for i in drawn], top)
    most = max(float(row[drawn].max()), 1e-12)
    asking = positions[drawn.index(sentence.query)]
    curves: list[Shape] = []
    letters: list[Shape] = []
    for i, position in zip(drawn, positions):
        strength = float(row[i]) / most
        letters += _word(sentence.names[i], position, strength, asks=i == sentence.query, share=float(row[i]))
        if strength >= DRAWN_FROM and i != sentence.query:
            curves.append(_curve(asking, position, strength))
    return curves + letters, bottom


Place = tuple[float, float, float]  # x of the middle, y of the base line, width


def _set_in_lines(names: Sequence[str], top: float) -> tuple[list[Place], float]:
    x, y, positions = 0.0, top + HEAD_ROOM, []
    for name in names:
        wide = max(width_of(name, SIZE), 30.0)  # room for the percentage below
        if x and x + wide > WIDE:
            x, y = 0.0, y + HEAD_ROOM + LINE_GAP
        positions.append((x + wide / 2, y, wide))
        x += wide + SPACE
    return positions, y + LINE_GAP


def _word(name: str, position: Place, strength: float, *, asks: bool, share: float) -> list[Shape]:
    x, y, wide = position
    shapes: list[Shape] = [Rect(x - wide / 2 - 2, y - SIZE, wide + 4, SIZE + 5, opacity=0.45 * strength)]
    if asks:
        shapes.append(Rect(x - wide / 2 - 2, y - SIZE, wide + 4, SIZE + 5, "mark", edge=1.5))
    shapes.append(TextLine(x, y, name, SIZE, anchor="middle"))
    shapes.append(TextLine(x, y + 19, percent(share).replace(" ", ""), 9.5, "soft", "middle"))
    return shapes


def _curve(start: Place, end: Place, strength: float) -> Bezier:
    height = min(HEAD_ROOM * 1.2, 24 + abs(end[0] - start[0]) * 0.42)
    a, b = (start[0], start[1] - SIZE - 1), (end[0], end[1] - SIZE - 1)
    points = (a, (a[0], a[1] - height), (b[0], b[1] - height), b)
    return Bezier(points, 0.6 + 7 * strength, 0.25 + 0.5 * strength)


def _matrix(sentence: SentenceMap, top: float) -> tuple[list[Shape], float]:
    drawn = sentence.drawn_words()
    weights = sentence.mean[np.ix_(drawn, drawn)]
    count, most = len(drawn), max(float(weights.max()), 1e-12)
    labelled = count <= MOST_LABELS
    room = min(200.0, max(width_of(sentence.names[i], 12) for i in drawn) + 10) if labelled else 0.0
    cell = min(24.0, (WIDE - room - 170) / count)
    size = cell * count
    head = room * 0.87 + 6 if labelled else 8.0
    y = top + head
    key = room + size + 24
    shapes: list[Shape] = [
        TextLine(key, y + 12, "rows: queries, columns: keys", 12, "soft"),
        Rect(room, y, size, size, "soft", 0.06),
        Raster(room, y, size, size, np.sqrt(weights / most)),
    ]
    letters = min(12.0, cell - 1)
    for n, i in enumerate(drawn if labelled else []):
        ink: Ink = "mark" if i == sentence.query else "ink"
        middle = (n + 0.5) * cell + letters * 0.36
        shapes.append(TextLine(room - 6, y + middle, sentence.names[i], letters, ink, "end"))
        shapes.append(TextLine(room + middle, y - 5, sentence.names[i], letters, ink, steep=True))
    if sentence.query is not None:
        shapes.append(Rect(room, y + drawn.index(sentence.query) * cell, size, cell, "mark", edge=1.2))
    return [*shapes, *_key(key, y + 24, most)], y + size


def _key(x: float, y: float, most: float) -> list[Shape]:
    """The legend of the shades; opacity is the square root of the weight, so that small weights stay visible."""
    shapes: list[Shape] = []
    for n, part in enumerate((1.0, 0.25, 0.04, 0.0)):
        shapes.append(Rect(x, y + 24 * n, 16, 16, "soft", 0.06))
        shapes.append(Raster(x, y + 24 * n, 16, 16, np.full((1, 1), math.sqrt(part))))
        shapes.append(TextLine(x + 24, y + 24 * n + 12.5, percent(part * most), 12, "soft"))
    return shapes


def _heads(sentence: SentenceMap, top: float) -> tuple[list[Shape], float]:
    """A small matrix for every head, each scaled to its own largest cell."""
    drawn = sentence.drawn_words()
    side, gap, across = 122.0, 24.0, 6
    shapes: list[Shape] = [TextLine(0, top + 12, "Heads", 13, bold=True)]
    y = top + 30
    for head, head_weights in enumerate(sentence.weights):
        weights = head_weights[np.ix_(drawn, drawn)]
        most = max(float(weights.max()), 1e-12)
        x, down = head % across * (side + gap), y + head // across * (side + 44)
        shapes.append(Rect(x, down, side, side, "soft", 0.06))
        shapes.append(Raster(x, down, side, side, np.sqrt(weights / most)))
        shapes.append(TextLine(x, down + side + 15, f"head {head} · up to {percent(most)}", 11, "soft"))
    rows = -(-len(sentence.weights) // across)
    return shapes, y + rows * (side + 44) - 18
