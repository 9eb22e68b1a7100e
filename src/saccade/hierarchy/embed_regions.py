"""From grids of vectors to one vector per grid, with one file per slide.

A file is reused where the slide, the network, its input (vectors of the level below and their coordinates) and the size
of regions are the same. Embedding twice costs nothing; an interrupted pass continues with the next slide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade import runtime
from saccade.augment.views import normalise
from saccade.data.feature_grids import Block, cells_of, cut_blocks, fill
from saccade.data.slide_features import SlideFeatures, about_step, load_parquet, read_about, save_parquet, step_of
from saccade.errors import DataError, ModelError
from saccade.features.slide_files import KNOWN, update_labels
from saccade.models.backbones.weights import LoadedModel, file_fingerprint, load_model
from saccade.train.loop import Console

BATCH = 64


@dataclass(frozen=True)
class Reader:
    """A network over grids, with the hash of its weights, or the seed of random ones."""

    model: LoadedModel
    hash: str

    def as_input(self, grids: np.ndarray) -> torch.Tensor:
        """Grids [B D+1 Y X] normalised for the network, on the CPU."""
        spec = self.model.spec
        return normalise((torch.from_numpy(grids) - spec.offset) / spec.scale, spec)


def reader_of(model: str | Path) -> Reader:
    """Load a grid network. Raises ModelError for a network over images."""
    loaded = load_model(model)
    if not loaded.backbone.capabilities.reads_grids:
        raise ModelError(f"{model} reads images", expected="a network over grids of vectors (grid_tiny, grid_micro)")
    return Reader(loaded, file_fingerprint(model))


def embed_grids(
    reader: Reader, files: Sequence[Path], folder: Path, *, side: int, min_tissue: float, console: Console
) -> list[Path]:
    """Embed the regions of slides.

    Parameters
    ----------
    reader : Reader
        Network over grids of tile vectors.
    files : sequence of Path
        One file of tile vectors per slide.
    folder : Path
        Where the files of region vectors are written, under the same names.
    side : int
        Tiles along the side of a region; 0: the whole slide is one region.
    min_tissue : float
        Minimum fraction of a region's tiles that are tissue. Slides without such a region are skipped.

    Returns
    -------
    list of Path
        One file of region vectors per slide that has regions.

    Raises
    ------
    DataError
        No slide has a region.
    """
    targets, made = [], 0
    for done, file in enumerate(files, start=1):
        target = folder / file.name
        below = load_parquet(file)
        about = _about(below, reader, side, min_tissue)
        if (there := _what_holds(target, about)) is not None:
            update_labels(target, there, about)
        else:
            blocks = cut_blocks(file, cells_of(below), side, min_tissue)
            if not blocks:
                console.say(f"{file.name}: no block of {side} x {side} tiles with {min_tissue:.0%} tissue; skipped")
                continue
            save_parquet(target, _vectors_of(reader, below, file, about, blocks))
            made += 1
        targets.append(target)
        console.progress(done, len(files), {})
    if not targets:
        raise DataError(
            "no slide has a region with enough tissue", hint="lower hipt.min_tissue, or use smaller regions"
        )
    if made < len(targets):
        level = "region" if side else "slide"
        reused = f"{len(targets) - made:,} of {len(targets):,}"
        console.say(f"{level} level: vectors of {reused} slides are up to date and reused")
    return targets


def grid_vectors(
    reader: Reader, below: SlideFeatures, file: Path, folder: Path, *, side: int, min_tissue: float
) -> tuple[list[Block], SlideFeatures]:
    """The regions of one slide and their vectors, as in ``embed_grids``, without writing a file.

    Raises DataError where the slide has no region with enough tissue.
    """
    blocks = cut_blocks(file, cells_of(below), side, min_tissue)
    if not blocks:
        raise DataError(
            "this slide has no region with enough tissue",
            got=f"{len(below)} tiles",
            expected=f"{side} x {side} tiles with {min_tissue:.0%} of them tissue",
        )
    about = _about(below, reader, side, min_tissue)
    if _what_holds(folder / file.name, about) is not None:
        return blocks, load_parquet(folder / file.name)
    return blocks, _vectors_of(reader, below, file, about, blocks)


def _about(tiles: SlideFeatures, reader: Reader, side: int, min_tissue: float) -> dict[str, Any]:
    """Metadata of a file of vectors: everything the vectors depend on, and the slide."""
    below = tiles.about
    about = {key: below.get(key) for key in ("slide", "slide_sha256", "label", "group", "split", "mpp")}
    down, across = (step * (side or 1) for step in step_of(below))
    about |= {"tile_px": int(below["tile_px"]) * (side or 1), **about_step(down, across)}
    about |= {"model": reader.model.name, "model_sha256": reader.hash, "side": side, "least": min_tissue}
    about["below_sha256"] = " ".join(str(below.get(key)) for key in ("model_sha256", "below_sha256"))
    return about | {"below_rows_sha256": _rows_sha256(tiles)}


def _rows_sha256(tiles: SlideFeatures) -> str:
    """Hash of coordinates and vectors: it changes with the selection of tiles."""
    digest = hashlib.sha256(np.asarray(tiles.coords, np.int64).tobytes())
    digest.update(np.asarray(tiles.features, np.float32).tobytes())
    return digest.hexdigest()


def _what_holds(target: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """The metadata of a file, where it matches ``about``; else None."""
    there = read_about(target) if target.is_file() else {}
    return there if all(there.get(key) == value for key, value in about.items() if key not in KNOWN) else None


@torch.inference_mode()
def _vectors_of(
    reader: Reader, below: SlideFeatures, file: Path, about: dict[str, Any], blocks: Sequence[Block]
) -> SlideFeatures:
    cells, spec = cells_of(below), reader.model.spec
    if below.features.shape[1] + 1 != spec.channels:
        raise ModelError(
            f"{reader.model.name} does not fit the vectors of {file}",
            got=f"vectors of width {below.features.shape[1]}",
            expected=f"width {spec.channels - 1}",
            hint="use the lower levels that it was trained with",
        )
    device = runtime.pick_device()
    network, precision = reader.model.backbone.to(device).eval(), runtime.usual_precision(device)
    rows = []
    for start in range(0, len(blocks), BATCH):
        grids = np.stack([fill(below, cells, block) for block in blocks[start : start + BATCH]])
        x = reader.as_input(grids).to(device)
        with runtime.autocast(device, precision):
            rows.append(network(x).cls.float().cpu().numpy())
    down, across = step_of(below.about)
    coords = np.array([(round(b.left * across), round(b.top * down)) for b in blocks], np.int64)
    return SlideFeatures(coords, np.concatenate(rows), about)
