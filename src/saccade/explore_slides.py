"""Which tiles of a slide are like which, for the page: features of all tiles are made once, in the background.

Then the tile under a click is compared with all others in one product, as ``saccade attend SLIDE --query`` does it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from saccade.data.slides.source import SlideTiles
from saccade.errors import SaccadeError, UsageError
from saccade.explore import Explorer, Kept, Look
from saccade.panels import shown
from saccade.store import unit

BATCH = 32
FEATURES_BYTES = 256 * 2**20


@dataclass(frozen=True)
class State:
    """How far the features of a slide are: ``done`` of ``total`` tiles; ``error`` is what went wrong, in words."""

    done: int
    total: int
    ready: bool
    error: str = ""


class SlideLooks:
    """Features of slides, by model; one slide is worked on at a time, the newest ones are kept."""

    def __init__(self, explorer: Explorer, limit_bytes: int = FEATURES_BYTES):
        self.explorer = explorer
        self._features: Kept[tuple[Look, str], np.ndarray] = Kept(limit_bytes)
        self._states: dict[tuple[Look, str], State] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def start(self, look: Look, slide: str, tiles: SlideTiles, number: int) -> State:
        """Begin with the features of one slide unless they are there or on their way; how far they are."""
        key = (look, slide)
        with self._lock:
            state = self.state(look, slide)
            if state is not None and not state.error:
                return state
            self._states[key] = State(0, len(tiles.tiles_of(number)), False)
        threading.Thread(target=self._work, args=[key, tiles, number], daemon=True).start()
        return self._states[key]

    def state(self, look: Look, slide: str) -> State | None:
        """None where nobody has asked, or where the features had to make room."""
        found = self._states.get((look, slide))
        if found is not None and found.ready and self._features.get((look, slide)) is None:
            return None
        return found

    def likeness(self, look: Look, slide: str, tile: int | None) -> np.ndarray:
        """Cosine of every tile [n] with one tile, less what all share; None: with the mean of all. UsageError."""
        features = self._features.get((look, slide))
        if features is None:
            raise UsageError("the tiles of this slide have not been looked at yet", hint="wait until all are done")
        if tile is None:
            return unit(features) @ unit(unit(features).mean(axis=0)[None])[0]
        if not 0 <= tile < len(features):
            raise UsageError("no such tile", got=tile, expected=f"0 to {len(features) - 1}")
        apart = unit(features - features.mean(axis=0))
        return apart @ apart[tile]

    def _work(self, key: tuple[Look, str], tiles: SlideTiles, number: int) -> None:
        indices = tiles.tiles_of(number)
        try:
            with self._turn:
                rows = []
                for start in range(0, len(indices), BATCH):
                    rows.append(self._batch(key[0], tiles, indices[start : start + BATCH]))
                    self._states[key] = State(min(start + BATCH, len(indices)), len(indices), False)
                features = np.concatenate(rows)
            self._features.put(key, features, features.nbytes)
            self._states[key] = State(len(indices), len(indices), True)
        except SaccadeError as error:
            self._states[key] = State(0, len(indices), False, str(error))

    @torch.inference_mode()
    def _batch(self, look: Look, tiles: SlideTiles, indices: np.ndarray) -> np.ndarray:
        samples = [tiles.read(int(index)) for index in indices]
        loaded = self.explorer.model(look, samples[0].pixels.shape[0])
        x = torch.cat([shown(loaded, sample.pixels, sample.record.id).x for sample in samples])
        return loaded.backbone(x).cls.float().numpy()
