"""From grids of vectors to one vector a grid, slide by slide, each slide's kept in a file of its own.

A file is used again where slide, network, what the network read (the vectors below and their places), and the side of
its blocks are the same: embedding twice is free, and a pass that was interrupted goes on with the next slide.
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
    """A network over grids, and what tells it from others: the hash of its weights, or the seed of random ones."""

    model: LoadedModel
    hash: str

    def as_input(self, grids: np.ndarray) -> torch.Tensor:
        """Grids [B D+1 Y X] as the network is given them, on the CPU."""
        spec = self.model.spec
        return normalise((torch.from_numpy(grids) - spec.offset) / spec.scale, spec)


def reader_of(model: str | Path) -> Reader:
    """The grid network that MODEL names. ModelError where it reads images."""
    loaded = load_model(model)
    if not loaded.backbone.capabilities.reads_grids:
        raise ModelError(f"{model} reads images", expected="a network over grids of vectors (grid_tiny, grid_micro)")
    return Reader(loaded, file_fingerprint(model))


def embed_grids(
    reader: Reader, files: Sequence[Path], folder: Path, *, side: int, least: float, console: Console
) -> list[Path]:
    """One file of vectors for every file in ``files``, in ``folder`` and under the same name.

    side    tiles along a block; 0: a slide is one block, and its file has one vector
    least   share of a block's tiles that must be there; a slide without such a block has none and is left out
    """
    found, made = [], 0
    for done, file in enumerate(files, start=1):
        target = folder / file.name
        below = load_parquet(file)
        about = _about(below, reader, side, least)
        if (there := _what_holds(target, about)) is not None:
            update_labels(target, there, about)
        else:
            blocks = cut_blocks(file, cells_of(below), side, least)
            if not blocks:
                console.say(f"{file.name}: no block of {side} x {side} tiles with {least:.0%} of them; left out")
                continue
            save_parquet(target, _vectors_of(reader, below, file, about, blocks))
            made += 1
        found.append(target)
        console.progress(done, len(files), {})
    if not found:
        raise DataError("no slide has a region with enough tissue", hint="lower hipt.least, or take smaller regions")
    if made < len(found):
        level = "region" if side else "slide"
        kept = f"{len(found) - made:,} of {len(found):,}"
        console.say(f"{level} level: vectors of {kept} slides were there and are used again")
    return found


def grid_vectors(
    reader: Reader, below: SlideFeatures, file: Path, folder: Path, *, side: int, least: float
) -> tuple[list[Block], SlideFeatures]:
    """The blocks of one slide and their vectors, as ``embed_grids`` has them, without writing anything.

    The file in ``folder`` is read where it is there. DataError where the slide has no such block.
    """
    blocks = cut_blocks(file, cells_of(below), side, least)
    if not blocks:
        raise DataError(
            "this slide has no region with enough tissue",
            got=f"{len(below)} tiles",
            expected=f"{side} x {side} tiles with {least:.0%} of them tissue",
        )
    about = _about(below, reader, side, least)
    if _what_holds(folder / file.name, about) is not None:
        return blocks, load_parquet(folder / file.name)
    return blocks, _vectors_of(reader, below, file, about, blocks)


def _about(found: SlideFeatures, reader: Reader, side: int, least: float) -> dict[str, Any]:
    """What is written with the vectors: all that they depend on, and what is known of the slide."""
    below = found.about
    about = {key: below.get(key) for key in ("slide", "slide_sha256", "label", "group", "split", "mpp")}
    down, across = (step * (side or 1) for step in step_of(below))
    about |= {"tile_px": int(below["tile_px"]) * (side or 1), **about_step(down, across)}
    about |= {"model": reader.model.name, "model_sha256": reader.hash, "side": side, "least": least}
    about["below_sha256"] = " ".join(str(below.get(key)) for key in ("model_sha256", "below_sha256"))
    return about | {"below_rows_sha256": _rows_sha256(found)}


def _rows_sha256(found: SlideFeatures) -> str:
    """Of places and vectors: other tiles of a slide (another share of tissue, fewer damaged) are other rows."""
    digest = hashlib.sha256(np.asarray(found.coords, np.int64).tobytes())
    digest.update(np.asarray(found.features, np.float32).tobytes())
    return digest.hexdigest()


def _what_holds(target: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """What a file says of itself, if it has the vectors that ``about`` asks for; else None."""
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
            hint="the levels below must be those it was trained on",
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
