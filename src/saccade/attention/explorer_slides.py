"""Similarity of the tiles of a slide for the page: features of all tiles are computed once, in the background.

The tile under a click is then compared with all others in one product, as ``saccade attend SLIDE --query`` does.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from saccade.attention.background_jobs import SlideJobs, SlideProgress, TilesDone
from saccade.attention.explorer import Explorer, ViewRequest
from saccade.data.images.downsample import convert_channels
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import DamagedFile, out_of_range
from saccade.features.embed_slides import Embedder
from saccade.features.table import l2_normalize

FEATURES_BYTES = 256 * 2**20


class SlideSimilarity:
    """Tile features by model and slide; one slide is processed at a time, recent ones are cached."""

    def __init__(self, explorer: Explorer, limit_bytes: int = FEATURES_BYTES):
        self.explorer = explorer
        self._features: SlideJobs[tuple[ViewRequest, str], np.ndarray] = SlideJobs("tiles", limit_bytes)

    def start(self, look: ViewRequest, slide: str, tiles: SlideTiles, number: int) -> SlideProgress:
        """Start computing the features of one slide unless they are available or on their way; its progress."""
        indices = tiles.tiles_of(number)
        return self._features.start((look, slide), len(indices), lambda done: self._make(look, tiles, number, done))

    def state(self, look: ViewRequest, slide: str) -> SlideProgress | None:
        """Progress; None if it was never started, or if the features were evicted."""
        return self._features.state((look, slide))

    def similarity(self, look: ViewRequest, slide: str, tile: int | None) -> np.ndarray:
        """Cosine similarity of every tile [n] with one tile, after subtracting the slide's mean; None: with that mean.

        NaN for tiles that cannot be read.

        Raises
        ------
        UsageError
            The tile does not exist.
        DamagedFile
            The tile cannot be read.
        """
        features = self._features.result((look, slide))
        readable = np.isfinite(features[:, 0])
        scores = np.full(len(features), np.nan, np.float32)
        if tile is None:
            unit_vectors = l2_normalize(features[readable])
            scores[readable] = unit_vectors @ l2_normalize(unit_vectors.mean(axis=0)[None])[0]
            return scores
        if not 0 <= tile < len(features):
            raise out_of_range("tile", tile, len(features) - 1)
        if not readable[tile]:
            raise DamagedFile("this tile cannot be read from the slide file", hint="copy the slide again")
        centred = l2_normalize(features[readable] - features[readable].mean(axis=0))
        scores[readable] = centred @ centred[np.count_nonzero(readable[:tile])]
        return scores

    def _make(self, look: ViewRequest, tiles: SlideTiles, number: int, done: TilesDone) -> np.ndarray:
        """[n D] as ``saccade attend`` and ``saccade embed`` compute them; NaN for tiles that cannot be read.

        Raises DamagedFile where no tile can be read.
        """
        sample = tiles.sample()
        loaded = self.explorer.model(look, sample.pixels.shape[0])
        convert_channels(sample.pixels, loaded.spec.channels, sample.record.id)  # raises where they do not fit
        # A copy: the embedder may move it to another device, and the explorer goes on using its own.
        loaded = dataclasses.replace(loaded, backbone=copy.deepcopy(loaded.backbone))
        embedder = Embedder(loaded, tiles, say=lambda _: None, max_bad=1.0)
        readable_features, readable = embedder.features(number, done)
        if not readable.any():
            raise DamagedFile("no tile of this slide can be read")
        features = np.full((len(readable), readable_features.shape[1]), np.nan, np.float32)
        features[readable] = readable_features
        return features
