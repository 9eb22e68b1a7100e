"""What may be asked of a text model beside its attention: facts for a page, what order means, what is looked up."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from saccade.errors import UsageError
from saccade.models.backbones.text import Positions, Reading, TextModel, load_text_model
from saccade.runtime import torch_generator

LECTURE = "This GitHub page contains all the general information about the course and the study materials."

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
