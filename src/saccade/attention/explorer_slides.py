"""Which tiles of a slide are like which, for the page: features of all tiles are made once, in the background.

Then the tile under a click is compared with all others in one product, as ``saccade attend SLIDE --query`` does it.
"""

from __future__ import annotations

import numpy as np
import torch

from saccade.attention.background_jobs import Background, Count, State
from saccade.attention.explorer import Explorer, Look
from saccade.attention.image import shown
from saccade.base.contracts import Sample
from saccade.data.images.downsample import finite
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import DamagedFile, UsageError
from saccade.features.table import l2_normalize

BATCH = 32
FEATURES_BYTES = 256 * 2**20


class SlideLooks:
    """Features of slides, by model; one slide is worked on at a time, the newest ones are kept."""

    def __init__(self, explorer: Explorer, limit_bytes: int = FEATURES_BYTES):
        self.explorer = explorer
        self._features: Background[tuple[Look, str], np.ndarray] = Background("tiles", limit_bytes)

    def start(self, look: Look, slide: str, tiles: SlideTiles, number: int) -> State:
        """Begin with the features of one slide unless they are there or on their way; how far they are."""
        indices = tiles.tiles_of(number)
        return self._features.start((look, slide), len(indices), lambda done: self._make(look, tiles, indices, done))

    def state(self, look: Look, slide: str) -> State | None:
        """None where nobody has asked, or where the features had to make room."""
        return self._features.state((look, slide))

    def likeness(self, look: Look, slide: str, tile: int | None) -> np.ndarray:
        """Cosine of every tile [n] with one tile, less what all share; None: with the mean of all.

        NaN for tiles that cannot be read. Raises UsageError for a tile that is not there, DamagedFile for one of those.
        """
        features = self._features.found((look, slide))
        there = np.isfinite(features[:, 0])
        scores = np.full(len(features), np.nan, np.float32)
        if tile is None:
            known = l2_normalize(features[there])
            scores[there] = known @ l2_normalize(known.mean(axis=0)[None])[0]
            return scores
        if not 0 <= tile < len(features):
            raise UsageError("no such tile", got=tile, expected=f"0 to {len(features) - 1}")
        if not there[tile]:
            raise DamagedFile("this tile cannot be read in the file of the slide", hint="copy the slide again")
        apart = l2_normalize(features[there] - features[there].mean(axis=0))
        scores[there] = apart @ apart[np.count_nonzero(there[:tile])]
        return scores

    def _make(self, look: Look, tiles: SlideTiles, indices: np.ndarray, done: Count) -> np.ndarray:
        """[n D], NaN for tiles that cannot be read. Raises DamagedFile where none can."""
        features: np.ndarray | None = None
        fault = DamagedFile("no tile of this slide can be read")
        for start in range(0, len(indices), BATCH):
            part, samples = indices[start : start + BATCH], {}
            for place, index in enumerate(part, start):
                try:
                    sample = tiles.read(int(index))
                    finite(sample.pixels, sample.record.id)
                    samples[place] = sample
                except DamagedFile as error:
                    fault = error
            if samples:
                rows = self._batch(look, list(samples.values()))
                if features is None:
                    features = np.full((len(indices), rows.shape[1]), np.nan, np.float32)
                features[list(samples)] = rows
            done(len(part))
        if features is None:
            raise fault
        return features

    @torch.inference_mode()
    def _batch(self, look: Look, samples: list[Sample]) -> np.ndarray:
        loaded = self.explorer.model(look, samples[0].pixels.shape[0])
        x = torch.cat([shown(loaded, sample.pixels, sample.record.id).x for sample in samples])
        return loaded.backbone(x).cls.float().numpy()
