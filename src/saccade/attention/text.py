"""One sentence on request (``attend_text``): lines for a terminal, pictures, numbers, and a page of one file.

The model's side is in ``backbones/text``, the pictures are in ``viz/sentence``, the page in ``web/static``.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.attention.text_lessons import facts, look_up, order_test
from saccade.base import frames
from saccade.base.files import write_bytes, write_text
from saccade.errors import ModelError, UsageError, unknown
from saccade.models.backbones.text import Reading, TextModel, load_text_model
from saccade.models.text_tokens import TextOptions, find_word, merge
from saccade.reporting.standalone import block, kept_layers, standalone
from saccade.viz.quantised import lost, quantise
from saccade.viz.sentence import SentenceMap, draw, lines

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True)
class AttendedText:
    """One sentence with who looks at whom."""

    reading: Reading
    sentence: SentenceMap
    options: TextOptions
    model: TextModel
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
            "model": self.model.name,
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
        """Write SVG or PNG (arcs and matrix), CSV (head, query, key, words, weight) or a page to look into (HTML)."""
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".svg":
            write_text(path, draw(self.sentence).svg())
        elif suffix == ".png":
            write_bytes(path, draw(self.sentence).png())
        elif suffix == ".csv":
            write_text(path, self._csv())
        elif suffix == ".html":
            write_text(path, page(self))
        else:
            raise unknown("picture format", path.suffix, (".svg", ".png", ".csv", ".html"))
        return path

    def columns(self) -> dict[str, list[Any]]:
        """One row per head, query and key: head, query, key, query_word, key_word, weight; with special tokens."""
        names, query = self.sentence.names, self.sentence.query
        queries = range(len(names)) if query is None else [query]
        rows = [
            {"head": head, "query": q, "key": k, "query_word": names[q], "key_word": names[k], "weight": float(weight)}
            for head, weights in zip(self._heads(), self.sentence.weights)
            for q in queries
            for k, weight in enumerate(weights[q])
        ]
        return frames.columns_of(rows)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per head, query and key as a pandas.DataFrame. Raises MissingDependency without pandas."""
        return frames.to_pandas(self.columns())

    def to_polars(self) -> polars.DataFrame:
        """One row per head, query and key as a polars.DataFrame. Raises MissingDependency without polars."""
        return frames.to_polars(self.columns())

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())

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
    return AttendedText(reading, sentence, options, loaded, layer)


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


# --- a page of one file ----------------------------------------------------------------------------

ORDERS = 5  # shuffles of the words that a page carries


def page(attended: AttendedText) -> str:
    """A page to look into without a server: weights of all layers and heads, or of as many layers as fit.

    What is lost by keeping one byte a weight is measured and said on the page.
    """
    reading, model = attended.reading, attended.model
    count = len(reading.tokens)
    kept = kept_layers(len(reading.layers), reading.heads * count * count, attended.layer)
    layers = {layer: quantise(reading.attention(layer=layer).numpy()) for layer in kept}
    words = lost(layers.values())
    if len(kept) < len(reading.layers):
        words += f" Of {len(reading.layers)} layers, {len(kept)} are kept."
    shown = attended.options
    data = {
        "info": facts(model, reading) | {"layers": kept},
        "layers": {layer: block(found) for layer, found in layers.items()},
        "look": {t.id: _short(look_up(model, t.id)) for t in reading.tokens},
        "orders": _orders(model, reading.text),
        "note": words,
        "asked": {
            "layer": attended.layer,
            "head": int(shown.head) if shown.head.isdigit() else "mean",
            "tokens": shown.tokens,
            "special": shown.special,
            "first": -1 if attended.sentence.query is None else attended.sentence.query,
        },
    }
    return standalone(f"Attention: {reading.text[:60]}", "standalone_words.js", data)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    return found | {"row": [round(v, 4) for v in found["row"]]}


def _orders(model: TextModel, text: str) -> list[dict[str, Any]]:
    try:
        return [asdict(order_test(model, text, seed=seed)) for seed in range(ORDERS)]
    except ModelError:  # positions that cannot be taken away
        return []
