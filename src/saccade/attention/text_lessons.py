"""Three lessons with a text model, for the page of sentences: its facts, the role of word order, table look-up."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import torch

from saccade.base.cache import LruCache
from saccade.errors import UsageError, out_of_range
from saccade.models.backbones.text import Positions, Reading, TextModel, load_text_model
from saccade.runtime import torch_generator

LECTURE = "This GitHub page contains all the general information about the course and the study materials."

# --- for a page ------------------------------------------------------------------------------------

MAX_READINGS, MAX_CHARACTERS = 8, 100_000


class Readings:
    """Text models, and recent readings by model and text; one text is read at a time."""

    def __init__(self) -> None:
        self._models: dict[str, TextModel] = {}
        self._readings: LruCache[tuple[str, str, Positions], Reading] = LruCache(MAX_READINGS)
        self._turn = threading.Lock()

    def model(self, name: str) -> TextModel:
        """The model of this folder, loaded once; the empty name is the built-in model."""
        with self._turn:
            if name not in self._models:
                self._models[name] = load_text_model(name or None)
            return self._models[name]

    def read(self, name: str, text: str, positions: Positions) -> Reading:
        """The reading of a text.

        Raises
        ------
        UsageError
            The text has no words, or more than MAX_CHARACTERS letters.
        """
        if len(text) > MAX_CHARACTERS:
            raise UsageError(
                "the text is too long", got=f"{len(text):,} characters", expected=f"at most {MAX_CHARACTERS:,}"
            )
        model, key = self.model(name), (name, text, positions)
        with self._turn:
            reading = self._readings.get(key)
            if reading is None:
                reading = model.read(text, positions=positions)
                self._readings.put(key, reading)
            return reading


def facts(model: TextModel, reading: Reading) -> dict[str, Any]:
    """Model, tokens and words of a reading, as the page needs them."""
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
    """The outputs for the same words in another order, with and without positions.

    Parameters
    ----------
    shuffled : str
        The text in its new order.
    with_positions, without : float
        Largest difference of any word's output between the two orders, with positions as trained and without.
    typical : float
        Mean absolute output, for comparison.
    causal : bool
        The model hides later words; order then matters even without positions.
    """

    shuffled: str
    with_positions: float
    without: float
    typical: float
    causal: bool


def order_test(model: TextModel, text: str, *, seed: int = 0) -> OrderTest:
    """Compare the outputs of the words in two orders.

    Without positions the encoder is permutation-equivariant: the set of outputs stays the same. The words' tokens move,
    special tokens stay in place.

    Raises
    ------
    ModelError
        The model's positions cannot be removed.
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
    """The tokens in their new order: words as a whole, special tokens in place."""
    words = [w for w in reading.words if not w.special]
    permutation = torch.randperm(len(words), generator=torch_generator(seed, "words")).tolist()
    if len(words) > 1 and permutation == list(range(len(words))):
        permutation = permutation[::-1]
    moved = iter([n for w in permutation for n in range(words[w].first, words[w].last + 1)])
    return [i if token.special else next(moved) for i, token in enumerate(reading.tokens)]


# --- look-up against projection --------------------------------------------------------------------

PATCH, CHANNELS, LEVELS = 16, 3, 256
ATOMS_LOG2 = 266  # in the observable universe, about 10^80


def look_up(model: TextModel, token: int) -> dict[str, Any]:
    """The embedding row of a token, and the numbers that show why patches have no such table.

    Parameters
    ----------
    model : TextModel
        The model.
    token : int
        Its index in the vocabulary.

    Raises
    ------
    UsageError
        The vocabulary has no such index.
    """
    rows, width = model.table.shape
    if not 0 <= token < rows:
        raise out_of_range("token in the vocabulary", token, rows - 1)
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
