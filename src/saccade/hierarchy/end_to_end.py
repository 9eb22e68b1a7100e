"""Region network and head trained on together from the labels of slides: from grids of tile vectors to the label.

What HIPT found wanting (Chen et al. 2022, table 2, "pretrained, trained on"), so that it can be tested on other slides.
The tile level rests. A step sees a few slides and a few regions of each, so memory does not grow with the slides.
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
from saccade.hierarchy.heads import Bags, FittedHead, HeadConfig, new_head, pace, statistics
from saccade.models.nn.network import Network

SLIDES, REGIONS = 8, 32
"""Slides a step, and regions of each of them; drawn anew at every step."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Takes steps done, steps in all, and figures: ``train.loop.Console.progress``."""


def untold(step: int, total: int, logs: dict[str, float]) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Regions:
    """The regions of one slide: ``grids`` [R D+1 Y X] as the region network is given them, and ``cells`` [R 2], their
    (row, column) on the lattice of the slide's regions."""

    grids: Tensor
    cells: np.ndarray

    def some(self, rows: np.ndarray) -> Regions:
        return Regions(self.grids[torch.from_numpy(rows)], self.cells[rows])


def regions_of(reader: Reader, file: Path, *, side: int, least: float) -> Regions:
    """The regions in a file of tile vectors, cut as ``vectors.embed_grids`` cuts them."""
    below = load_parquet(file)
    cells = cells_of(below)
    blocks = cut_blocks(file, cells, side, least)
    grids = np.stack([fill(below, cells, block) for block in blocks])
    corners = np.array([(block.top // side, block.left // side) for block in blocks], np.int64)
    return Regions(reader.as_input(grids), corners - corners.min(axis=0))


def vectors_as_grids(network: Network, slides: Sequence[Regions]) -> Float[Tensor, "S C Y X"]:
    """What ``network`` says of every region, laid out as the heads read it: the last channel says what is there."""
    vectors = network(torch.cat([one.grids for one in slides])).cls.float()
    vectors = torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)
    number = np.repeat(np.arange(len(slides)), [len(one.cells) for one in slides])
    cells = np.concatenate([one.cells for one in slides])
    rows, columns = cells.max(axis=0) + 1
    places = torch.from_numpy((number * rows + cells[:, 0]) * columns + cells[:, 1])
    flat = vectors.new_zeros(len(slides) * rows * columns, vectors.shape[1]).index_copy(0, places, vectors)
    return flat.reshape(len(slides), rows, columns, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Together:
    """A region network that was trained on, and the head that reads what it says."""

    network: Network
    head: FittedHead

    def scores(self, slides: Sequence[Regions]) -> np.ndarray:
        """Probabilities [S K], slide by slide."""
        return np.concatenate([self.head.scores(_bags(self.network, [one])) for one in slides])


def _bags(network: Network, slides: Sequence[Regions]) -> Bags:
    with torch.inference_mode():
        return Bags(vectors_as_grids(network.eval(), slides).numpy())


def fit_together(
    reader: Reader,
    slides: Sequence[Regions],
    labels: np.ndarray,
    classes: int,
    config: HeadConfig,
    *,
    region_lr: float,
    seed: int,
    progress: Progress = untold,
) -> Together:
    """Train a copy of the region network and a new head on these slides; ``reader`` stays as it is.

    The head begins as ``heads.fit_head`` would begin it, and sees vectors normalised as the resting network gave them.
    ``progress`` is called after each step with steps done, steps in all, and the loss.
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
                group["lr"] = rate * pace(step, config.steps)
            chosen = _drawn(slides, step, seed)
            grids = vectors_as_grids(network, [part for _, part in chosen])
            there = grids[:, -1:]
            answers = head(torch.cat([(grids[:, :-1] - shift) / spread * there, there], dim=1))
            loss = F.cross_entropy(answers, torch.from_numpy(labels[[s for s, _ in chosen]]), weight=weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress(step + 1, config.steps, {"loss": loss.item()})
    return Together(network.eval(), FittedHead(head.eval(), mean, std))


def _statistics(network: Network, slides: Sequence[Regions]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of the vectors of all regions, before anything is learned from labels."""
    rows = []
    for one in slides:
        grids = _bags(network, [one]).grids
        rows.append(grids[0][:, grids[0, -1] > 0.5])
    return statistics(Bags(np.concatenate(rows, axis=1)[None, :, None]))


def _drawn(slides: Sequence[Regions], step: int, seed: int) -> list[tuple[int, Regions]]:
    """The slides of one step with some regions of each: a function of (seed, step) alone."""
    rng = numpy_generator(seed, "together", step)
    found = []
    for s in rng.permutation(len(slides))[:SLIDES]:
        count = len(slides[s].cells)
        rows = np.sort(rng.permutation(count)[:REGIONS])
        found.append((int(s), slides[s].some(rows)))
    return found
