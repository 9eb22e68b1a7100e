"""Sentences and text models: one sentence on request (``attend_text``), and what order, look-up and projection mean.

The text models' own side is in ``backbones/text``, the pictures in ``viz/sentence``.
"""

from __future__ import annotations

import csv
import io
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade.backbones.text import Positions, Reading, TextModel, load_text_model
from saccade.errors import UsageError, unknown
from saccade.seeds import torch_generator
from saccade.viz.sentence import SentenceMap, draw, lines
from saccade.words import TextOptions, find_word, merge

LECTURE = "This GitHub page contains all the general information about the course and the study materials."


@dataclass(frozen=True)
class AttendedText:
    """One sentence with who looks at whom."""

    reading: Reading
    sentence: SentenceMap
    options: TextOptions
    model: str
    layer: int

    def text(self) -> str:
        """For a terminal: readable without colour."""
        said = [s for s in (self.sentence.unseen(), self.cut()) if s]
        return "\n".join([self.sentence.title, *lines(self.sentence), *said])

    def cut(self) -> str:
        """What did not fit, in words; empty where all did."""
        left = self.reading.left_out
        if not left:
            return ""
        return (
            f"the model reads {len(self.reading.tokens)} tokens at once: the last {left} words were left out, "
            f"after “{self.reading.words[-1 if not self.reading.words[-1].special else -2].text}”"
        )

    def to_dict(self) -> dict[str, Any]:
        sentence = self.sentence
        found = {
            "model": self.model,
            "layer": self.layer,
            "head": self.options.head,
            "heads": self.reading.heads,
            "words": list(sentence.names),
            "special": list(sentence.special),
            "query": sentence.query,
            "left_out": self.reading.left_out,
        }
        rows = sentence.mean if sentence.query is None else sentence.mean[sentence.query]
        return found | {"weights": [[round(float(v), 7) for v in row] for row in np.atleast_2d(rows)]}

    def save(self, path: Path) -> Path:
        """Write SVG or PNG (arcs and matrix) or CSV (head, query, key, words, weight)."""
        path = Path(path)
        suffix = path.suffix.lower()
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".svg":
            path.write_text(draw(self.sentence).svg(), encoding="utf-8")
        elif suffix == ".png":
            path.write_bytes(draw(self.sentence).png())
        elif suffix == ".csv":
            path.write_text(self._csv(), encoding="utf-8")
        else:
            raise unknown("picture format", path.suffix, (".svg", ".png", ".csv"))
        return path

    def _csv(self) -> str:
        """Every number, special tokens included."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(["head", "query", "key", "query_word", "key_word", "weight"])
        names, asked = self.sentence.names, self.sentence.query
        for head, rows in zip(self._heads(), self.sentence.weights):
            for query in range(len(names)) if asked is None else [asked]:
                for key, weight in enumerate(rows[query]):
                    writer.writerow([head, query, key, _cell(names[query]), _cell(names[key]), f"{weight:.8g}"])
        return file.getvalue()

    def _heads(self) -> list[str]:
        named = self.options.head
        return [str(h) for h in range(self.reading.heads)] if named == "all" else [named]


def _cell(word: str) -> str:
    """A spreadsheet takes what begins like this for a formula."""
    return f"'{word}" if word[:1] in ("=", "+", "-", "@", "\t", "\r") else word


def attend_text(model: str | Path | TextModel | None, text: str, options: TextOptions) -> AttendedText:
    """Which words does a word look at? Exact attention of one layer, on the model as trained.

    model  None is the built-in one, a path a local folder of the transformers library
    Raises UsageError for a word, layer or head that is not there, MissingDependency without the extra ``text``.
    """
    loaded = model if isinstance(model, TextModel) else load_text_model(model)
    reading = loaded.read(text)
    layer = reading.layer(-1 if options.layer is None else options.layer)
    sentence = sentence_map(loaded.name, reading, options)
    return AttendedText(reading, sentence, options, loaded.name, layer)


def sentence_map(model: str, reading: Reading, options: TextOptions) -> SentenceMap:
    """The numbers that the pictures and lines of one layer show."""
    layer = reading.layer(-1 if options.layer is None else options.layer)
    weights = _of_heads(reading.attention(layer=layer).numpy(), options.head)
    units = reading.words
    names = tuple(word.text for word in units)
    special = tuple(word.special for word in units)
    query = None if options.query is None else find_word(options.query, units)
    if options.tokens:
        names = tuple(token.piece if not token.unknown else token.text for token in reading.tokens)
        special = tuple(token.special for token in reading.tokens)
        # A word is asked by its first token; a number counts tokens, since tokens are what is shown.
        query = None if options.query is None else _token(options.query, reading)
    else:
        weights = merge(weights, units)
    shown = f"head {options.head}" if options.head.isdigit() else f"mean of {reading.heads} heads"
    title = f"{model}, layer {layer} of 0 to {len(reading.layers) - 1}, {shown}"
    return SentenceMap(names, special, weights, query, hidden=not options.special, title=title)


def _of_heads(weights: np.ndarray, head: str) -> np.ndarray:
    if head == "all":
        return weights
    if head == "mean":
        return weights.mean(axis=0, keepdims=True)
    if not head.isdigit() or int(head) >= len(weights):
        raise UsageError("no such head", got=head, expected=f"all, mean or 0 to {len(weights) - 1}")
    return weights[int(head)][None]


def _token(query: str, reading: Reading) -> int:
    count = len(reading.tokens)
    if not query.lstrip("-").isdigit():
        return reading.words[find_word(query, reading.words)].first
    if not -count <= int(query) < count:
        raise UsageError("no such token", got=query, expected=f"0 to {count - 1}")
    return int(query) % count


# --- for a page ------------------------------------------------------------------------------------

KEPT_READINGS, MOST_LETTERS = 8, 100_000


class Readings:
    """Models and the newest readings, by name and text; one text is read at a time."""

    def __init__(self) -> None:
        self._models: dict[str, TextModel] = {}
        self._kept: OrderedDict[tuple[str, str, Positions], Reading] = OrderedDict()
        self._turn = threading.Lock()

    def model(self, name: str) -> TextModel:
        """The model of this folder, loaded once; the empty name is the built-in one."""
        with self._turn:
            if name not in self._models:
                self._models[name] = load_text_model(name or None)
            return self._models[name]

    def read(self, name: str, text: str, positions: Positions) -> Reading:
        """Raises UsageError for a text without words or of more than MOST_LETTERS letters."""
        if len(text) > MOST_LETTERS:
            raise UsageError("the text is too long", got=f"{len(text):,} letters", expected=f"at most {MOST_LETTERS:,}")
        model, key = self.model(name), (name, text, positions)
        with self._turn:
            if key not in self._kept:
                self._kept[key] = model.read(text, positions=positions)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_READINGS:
                self._kept.popitem(last=False)
            return self._kept[key]


def facts(model: TextModel, reading: Reading) -> dict[str, Any]:
    """What a page must know of a reading before it asks for weights."""
    return {
        "model": model.name,
        "text": reading.text,
        "depth": len(reading.layers),
        "heads": reading.heads,
        "width": model.dim,
        "limit": model.limit,
        "left_out": reading.left_out,
        "causal": reading.causal,
        "positions": reading.positions,
        "tokens": [
            {"id": t.id, "piece": t.piece, "text": t.text, "special": t.special, "unknown": t.unknown}
            for t in reading.tokens
        ],
        "words": [{"text": w.text, "first": w.first, "last": w.last, "special": w.special} for w in reading.words],
    }


# --- what order means ------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrderTest:
    """The same words in another order, read with and without positions.

    shuffled         the text in its new order
    with_positions   largest difference of any word's output between the two orders, positions as trained
    without          the same with all positions alike: rounding only, when nothing else tells the order
    typical          mean size of an output number, to compare with
    causal           whether the model hides later words; then order shows even without positions
    """

    shuffled: str
    with_positions: float
    without: float
    typical: float
    causal: bool


def order_test(model: TextModel, text: str, *, seed: int = 0) -> OrderTest:
    """Do the outputs of the words change when the words change places?

    Without positions the set of outputs stays the same: the encoder is permutation-equivariant. The words' tokens
    are moved, the special tokens stay where they are. Raises ModelError when positions cannot be taken away.
    """
    tokens, _ = model.tokens(text)
    ids = [token.id for token in tokens]
    plain = model.read(text)
    order = _shuffled(plain, seed)
    differences = {}
    for positions in ("trained", "constant"):
        before, _ = model.run(ids, positions)
        after, _ = model.run([ids[i] for i in order], positions)
        differences[positions] = float((after - before[order]).abs().max())
    words = sorted((w for w in plain.words if not w.special), key=lambda w: order.index(w.first))
    return OrderTest(
        shuffled=" ".join(word.text for word in words),
        with_positions=differences["trained"],
        without=differences["constant"],
        typical=float(plain.outputs.abs().mean()),
        causal=plain.causal,
    )


def _shuffled(reading: Reading, seed: int) -> list[int]:
    """Numbers of the tokens in their new order: words as a whole, special tokens in their places."""
    words = [w for w in reading.words if not w.special]
    turned = torch.randperm(len(words), generator=torch_generator(seed, "words")).tolist()
    if len(words) > 1 and turned == list(range(len(words))):
        turned = turned[::-1]
    moved = iter([n for w in turned for n in range(words[w].first, words[w].last + 1)])
    return [i if token.special else next(moved) for i, token in enumerate(reading.tokens)]


# --- look-up against projection --------------------------------------------------------------------

PATCH, CHANNELS, LEVELS = 16, 3, 256
ATOMS_LOG2 = 266  # in the observable universe, about 10^80


def look_up(model: TextModel, token: int) -> dict[str, Any]:
    """The row of the model's table that a token stands for, and why a patch cannot have one.

    token  its number in the vocabulary. Raises UsageError when the table has no such row.
    """
    rows, width = model.table.shape
    if not 0 <= token < rows:
        raise UsageError("no such token in the vocabulary", got=token, expected=f"0 to {rows - 1}")
    numbers = PATCH * PATCH * CHANNELS
    bits = numbers * int(math.log2(LEVELS))
    return {
        "token": token,
        "vocabulary": rows,
        "width": width,
        "row": model.table[token].tolist(),
        "table_numbers": rows * width,
        "patch_px": PATCH,
        "patch_numbers": numbers,
        "patch_values_log2": bits,
        "patch_values_log10": bits * math.log10(2),
        "atoms_log2": ATOMS_LOG2,
        "projection_numbers": numbers * width + width,
    }
