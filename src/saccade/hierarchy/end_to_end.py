"""Fine-tune the region network together with a head on labels of slides; the tile level stays frozen.

In HIPT (Chen et al. 2022, table 2) this was worse than a frozen region level; here it can be tested on other slides.
A step uses a few slides and a few regions of each, so memory does not grow with the number of slides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saccade.base.random import numpy_generator
from saccade.data.feature_grids import cells_of, cut_blocks, fill
from saccade.data.slide_features import load_parquet
from saccade.hierarchy.embed_regions import Reader
from saccade.hierarchy.heads import Bags, FittedHead, HeadConfig, lr_factor, new_head, statistics
from saccade.models.nn.network import Network

SLIDES, REGIONS = 8, 32
"""Slides per step and regions per slide, drawn anew at every step."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Takes the number of steps done, of all steps, and logged figures, as ``train.loop.Console.progress``."""


def no_progress(step: int, total: int, logs: dict[str, float]) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Regions:
    """The regions of one slide: ``grids`` [R D+1 Y X], input of the region network, and ``cells`` [R 2], the (row,
    column) of each region."""

    grids: Tensor
    cells: np.ndarray

    def some(self, rows: np.ndarray) -> Regions:
        return Regions(self.grids[torch.from_numpy(rows)], self.cells[rows])


def regions_of(reader: Reader, file: Path, *, side: int, min_tissue: float) -> Regions:
    """The regions in a file of tile vectors, as in ``embed_regions.embed_grids``."""
    below = load_parquet(file)
    cells = cells_of(below)
    blocks = cut_blocks(file, cells, side, min_tissue)
    grids = np.stack([fill(below, cells, block) for block in blocks])
    corners = np.array([(block.top // side, block.left // side) for block in blocks], np.int64)
    return Regions(reader.as_input(grids), corners - corners.min(axis=0))


def vectors_as_grids(network: Network, slides: Sequence[Regions]) -> Float[Tensor, "S C Y X"]:
    """Vectors of all regions as grids, the input of heads; the last channel marks cells that have a region."""
    vectors = network(torch.cat([slide.grids for slide in slides])).cls.float()
    vectors = torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)
    number = np.repeat(np.arange(len(slides)), [len(slide.cells) for slide in slides])
    cells = np.concatenate([slide.cells for slide in slides])
    rows, columns = cells.max(axis=0) + 1
    places = torch.from_numpy((number * rows + cells[:, 0]) * columns + cells[:, 1])
    flat = vectors.new_zeros(len(slides) * rows * columns, vectors.shape[1]).index_copy(0, places, vectors)
    return flat.reshape(len(slides), rows, columns, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class EndToEndModel:
    """A fine-tuned region network and its head."""

    network: Network
    head: FittedHead

    def scores(self, slides: Sequence[Regions]) -> np.ndarray:
        """Class probabilities of each slide [S K]."""
        return np.concatenate([self.head.scores(_bags(self.network, [slide])) for slide in slides])


def _bags(network: Network, slides: Sequence[Regions]) -> Bags:
    with torch.inference_mode():
        return Bags(vectors_as_grids(network.eval(), slides).numpy())


def fit_end_to_end(
    reader: Reader,
    slides: Sequence[Regions],
    labels: np.ndarray,
    classes: int,
    config: HeadConfig,
    *,
    region_lr: float,
    seed: int,
    progress: Progress = no_progress,
) -> EndToEndModel:
    """Train a copy of the region network together with a new head.

    Parameters
    ----------
    reader : Reader
        The pretrained region network; it is not changed.
    slides : sequence of Regions
        Training slides.
    labels : ndarray [S]
        Class index of each slide.
    classes : int
        Number of classes.
    config : HeadConfig
        Training of the head, initialised as in ``heads.fit_head``.
    region_lr : float
        Peak learning rate of the region network.
    seed : int
        Seed of the head and of the draws.
    progress : callable
        Called after each step with steps done, all steps and the loss.
    """
    network = copy.deepcopy(reader.model.backbone).cpu().requires_grad_(True)
    mean, std = _statistics(network, slides)
    shift, spread = (torch.from_numpy(v)[:, None, None] for v in (mean, std))
    counts = torch.bincount(torch.from_numpy(labels), minlength=classes).clamp_min(1)
    weight = len(labels) / (classes * counts)
    with torch.random.fork_rng(devices=[]):
        head = new_head(config, len(mean), classes, seed)
        rates = (config.lr, region_lr)
        optimizer = torch.optim.AdamW(
            [{"params": head.parameters()}, {"params": network.parameters()}], weight_decay=config.weight_decay
        )
        network.train()
        for step in range(config.steps):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * lr_factor(step, config.steps)
            chosen = _drawn(slides, step, seed)
            grids = vectors_as_grids(network, [part for _, part in chosen])
            there = grids[:, -1:]
            answers = head(torch.cat([(grids[:, :-1] - shift) / spread * there, there], dim=1))
            loss = F.cross_entropy(answers, torch.from_numpy(labels[[s for s, _ in chosen]]), weight=weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress(step + 1, config.steps, {"loss": loss.item()})
    return EndToEndModel(network.eval(), FittedHead(head.eval(), mean, std))


def _statistics(network: Network, slides: Sequence[Regions]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of the vectors of all regions, before fine-tuning."""
    rows = []
    for slide in slides:
        grids = _bags(network, [slide]).grids
        rows.append(grids[0][:, grids[0, -1] > 0.5])
    return statistics(Bags(np.concatenate(rows, axis=1)[None, :, None]))


def _drawn(slides: Sequence[Regions], step: int, seed: int) -> list[tuple[int, Regions]]:
    """Slides of one step and some regions of each, a function of (seed, step)."""
    rng = numpy_generator(seed, "together", step)
    drawn = []
    for s in rng.permutation(len(slides))[:SLIDES]:
        count = len(slides[s].cells)
        rows = np.sort(rng.permutation(count)[:REGIONS])
        drawn.append((int(s), slides[s].some(rows)))
    return drawn
