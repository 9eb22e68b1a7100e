"""Attention in one sentence (``saccade attend --text``): text for a terminal, pictures, CSV and an HTML page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.attention.text_lessons import facts, look_up, order_test
from saccade.base import frames
from saccade.base.files import write_bytes, write_text
from saccade.errors import ModelError, out_of_range
from saccade.models.backbones.text import Reading, TextModel, load_text_model
from saccade.models.text_tokens import TextOptions, find_word, merge
from saccade.reporting.standalone import block, kept_layers, standalone
from saccade.viz.quantised import lost, quantise
from saccade.viz.save import csv_text, save_by_suffix
from saccade.viz.sentence import SentenceMap, draw, lines


@dataclass(frozen=True)
class TextAttention(frames.Tabular):
    """The attention between the words of one sentence."""

    reading: Reading
    sentence: SentenceMap
    options: TextOptions
    model: TextModel
    layer: int

    def text(self) -> str:
        """The result as text for a terminal, readable without colour."""
        notes = [s for s in (self.sentence.hidden_note(), self.cut()) if s]
        return "\n".join([self.sentence.title, *lines(self.sentence), *notes])

    def cut(self) -> str:
        """How many words did not fit into the model; empty where all did."""
        left = self.reading.left_out
        if not left:
            return ""
        return (
            f"the model takes {len(self.reading.tokens)} tokens: the last {left} words were left out, "
            f"after “{self.reading.words[-1 if not self.reading.words[-1].special else -2].text}”"
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        sentence = self.sentence
        record = {
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
        return record | {"weights": [[round(float(v), 7) for v in row] for row in np.atleast_2d(rows)]}

    def save(self, path: Path) -> Path:
        """Write SVG or PNG (arcs and matrix), CSV (head, query, key, words, weight) or an interactive page (HTML).

        Raises
        ------
        UsageError
            The suffix is none of these.
        """
        writers: dict[str, Callable[[Path], object]] = {
            ".svg": lambda target: write_text(target, draw(self.sentence).svg()),
            ".png": lambda target: write_bytes(target, draw(self.sentence).png()),
            ".csv": lambda target: write_text(target, self._csv()),
            ".html": lambda target: write_text(target, page(self)),
        }
        return save_by_suffix(path, writers, "picture format")

    def frame_columns(self) -> dict[str, list[Any]]:
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

    def _repr_html_(self) -> str:
        return frames.text_to_html(self.text())

    def _csv(self) -> str:
        """Every weight, special tokens included."""
        names, query = self.sentence.names, self.sentence.query
        rows = (
            [head, i, key, _cell(names[i]), _cell(names[key]), f"{weight:.8g}"]
            for head, weights in zip(self._heads(), self.sentence.weights)
            for i in (range(len(names)) if query is None else [query])
            for key, weight in enumerate(weights[i])
        )
        return csv_text(["head", "query", "key", "query_word", "key_word", "weight"], rows)

    def _heads(self) -> list[str]:
        head = self.options.head
        return [str(h) for h in range(self.reading.heads)] if head == "all" else [head]


def _cell(word: str) -> str:
    """A word for a spreadsheet, which would take these first characters for a formula."""
    return f"'{word}" if word[:1] in ("=", "+", "-", "@", "\t", "\r") else word


def attend_text(model: str | Path | TextModel | None, text: str, options: TextOptions) -> TextAttention:
    """Exact attention between the words of a sentence in one layer.

    Parameters
    ----------
    model : str, Path, TextModel or None
        A folder of the transformers library; None is the built-in model.
    text : str
        The sentence.
    options : TextOptions
        Query, layer, head and display options.

    Raises
    ------
    UsageError
        A word, layer or head does not exist.
    MissingDependency
        The extra ``text`` is not installed.
    """
    loaded = model if isinstance(model, TextModel) else load_text_model(model)
    reading = loaded.read(text)
    layer = reading.layer(-1 if options.layer is None else options.layer)
    sentence = sentence_map(loaded.name, reading, options)
    return TextAttention(reading, sentence, options, loaded, layer)


def sentence_map(model: str, reading: Reading, options: TextOptions) -> SentenceMap:
    """The weights of one layer, and the words, as pictures and text lines show them."""
    layer = reading.layer(-1 if options.layer is None else options.layer)
    weights = _of_heads(reading.attention(layer=layer).numpy(), options.head)
    units = reading.words
    names = tuple(word.text for word in units)
    special = tuple(word.special for word in units)
    query = None if options.query is None else find_word(options.query, units)
    if options.tokens:
        names = tuple(token.piece if not token.unknown else token.text for token in reading.tokens)
        special = tuple(token.special for token in reading.tokens)
        # A word stands for its first token; a number counts tokens.
        query = None if options.query is None else _token(options.query, reading)
    else:
        weights = merge(weights, units)
    head_name = f"head {options.head}" if options.head.isdigit() else f"mean of {reading.heads} heads"
    title = f"{model}, layer {layer} of 0 to {len(reading.layers) - 1}, {head_name}"
    return SentenceMap(names, special, weights, query, hidden=not options.special, title=title)


def _of_heads(weights: np.ndarray, head: str) -> np.ndarray:
    if head == "all":
        return weights
    if head == "mean":
        return weights.mean(axis=0, keepdims=True)
    if not head.isdigit() or int(head) >= len(weights):
        raise out_of_range("head", head, len(weights) - 1, also="all, mean")
    return weights[int(head)][None]


def _token(query: str, reading: Reading) -> int:
    count = len(reading.tokens)
    if not query.lstrip("-").isdigit():
        return reading.words[find_word(query, reading.words)].first
    if not -count <= int(query) < count:
        raise out_of_range("token", query, count - 1)
    return int(query) % count


# --- a page of one file ----------------------------------------------------------------------------

ORDERS = 5  # number of shuffled word orders in a page


def page(attended: TextAttention) -> str:
    """An interactive page of one file: weights of all layers and heads, or of as many layers as fit.

    Weights are stored in one byte each; the page states the measured error.
    """
    reading, model = attended.reading, attended.model
    count = len(reading.tokens)
    layer_numbers = kept_layers(len(reading.layers), reading.heads * count * count, attended.layer)
    layers = {layer: quantise(reading.attention(layer=layer).numpy()) for layer in layer_numbers}
    words = lost(layers.values())
    if len(layer_numbers) < len(reading.layers):
        words += f" The page holds {len(layer_numbers)} of {len(reading.layers)} layers."
    options = attended.options
    data = {
        "info": facts(model, reading) | {"layers": layer_numbers},
        "layers": {layer: block(layer_rows) for layer, layer_rows in layers.items()},
        "look": {t.id: _short(look_up(model, t.id)) for t in reading.tokens},
        "orders": _orders(model, reading.text),
        "note": words,
        "asked": {
            "layer": attended.layer,
            "head": int(options.head) if options.head.isdigit() else "mean",
            "tokens": options.tokens,
            "special": options.special,
            "first": -1 if attended.sentence.query is None else attended.sentence.query,
        },
    }
    return standalone(f"Attention: {reading.text[:60]}", "standalone_sentence.js", data)


def _short(lookup: dict[str, Any]) -> dict[str, Any]:
    return lookup | {"row": [round(v, 4) for v in lookup["row"]]}


def _orders(model: TextModel, text: str) -> list[dict[str, Any]]:
    try:
        return [asdict(order_test(model, text, seed=seed)) for seed in range(ORDERS)]
    except ModelError:  # a model whose positions cannot be removed
        return []
