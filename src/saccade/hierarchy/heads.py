"""Heads from region vectors to the label of a slide: gated attention pooling, and a small transformer.

Gated attention is Ilse et al. 2018, "Attention-based deep multiple instance learning" (arXiv:1802.04712), equation 9;
the transformer is the third level of HIPT (Chen et al. 2022, arXiv:2206.02647) and uses the positions of regions.
Few slides, many regions: all slides of a training part are one padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saccade.base.random import seed_number
from saccade.base.schedules import cosine_schedule
from saccade.models.backbones.build import build
from saccade.models.nn.attention import has_attention

Kind = Literal["abmil", "transformer"]
KINDS: tuple[Kind, ...] = ("abmil", "transformer")
WARMUP = 0.1


@dataclass(frozen=True)
class Bags:
    """Padded grids of vectors of S slides: [S D+1 Y X] float32; the last channel marks cells that have a vector."""

    grids: np.ndarray

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def dim(self) -> int:
        return self.grids.shape[1] - 1

    def select(self, rows: np.ndarray) -> Bags:
        return Bags(self.grids[rows])

    def means(self) -> np.ndarray:
        """Mean of the vectors of each slide [S D]."""
        there = self.grids[:, -1:]
        return (self.grids[:, :-1] * there).sum(axis=(2, 3)) / np.maximum(there.sum(axis=(2, 3)), 1)


def pad_bags(grids: list[np.ndarray]) -> Bags:
    """Pad grids [D+1 Y X] of several sizes to one batch."""
    rows, columns = (max(g.shape[a] for g in grids) for a in (1, 2))
    out = np.zeros((len(grids), grids[0].shape[0], rows, columns), np.float32)
    for s, grid in enumerate(grids):
        out[s, :, : grid.shape[1], : grid.shape[2]] = grid
    return Bags(out)


@dataclass(frozen=True)
class HeadConfig:
    """Training of a head. Nested cross-validation chooses ``weight_decay`` (evaluation/nested_cv.py)."""

    kind: Kind = "abmil"
    hidden: int = 64
    dropout: float = 0.25
    steps: int = 100
    lr: float = 3e-3
    weight_decay: float = 1e-2


class GatedAttention(nn.Module):
    """Ilse et al. 2018: weights softmax(w (tanh(V h) * sigmoid(U h))), a linear classifier on the weighted mean."""

    def __init__(self, dim: int, classes: int, config: HeadConfig):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Linear(dim, config.hidden), nn.ReLU(), nn.Dropout(config.dropout))
        self.value, self.gate = nn.Linear(config.hidden, config.hidden), nn.Linear(config.hidden, config.hidden)
        self.score = nn.Linear(config.hidden, 1)
        self.classify = nn.Linear(config.hidden, classes)

    def weights(
        self, vectors: Float[Tensor, "S R D"], there: Bool[Tensor, "S R"]
    ) -> tuple[Float[Tensor, "S R"], Float[Tensor, "S R H"]]:
        """Attention weight of each region, summing to 1 per slide, and the vectors they apply to."""
        hidden = self.squeeze(vectors)
        scores = self.score(torch.tanh(self.value(hidden)) * torch.sigmoid(self.gate(hidden)))[..., 0]
        return torch.softmax(scores.masked_fill(~there, -1e9), dim=1) * there, hidden

    def forward(self, grids: Float[Tensor, "S C Y X"]) -> Float[Tensor, "S K"]:
        weights, hidden = self.weights(*_as_bag(grids))
        answer: Tensor = self.classify((weights[..., None] * hidden).sum(dim=1))
        return answer


class GridTransformer(nn.Module):
    """Two transformer layers over the grid of regions, with positions; the class token is classified."""

    def __init__(self, dim: int, classes: int, config: HeadConfig):
        super().__init__()
        encoder = build(f"grid_nano_w{config.hidden}", channels=dim + 1, size_px=1)
        assert has_attention(encoder)
        self.encoder = encoder
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.hidden, classes)

    def forward(self, grids: Float[Tensor, "S C Y X"]) -> Float[Tensor, "S K"]:
        return self.classify(self.dropout(self.encoder(grids).cls))


def _as_bag(grids: Float[Tensor, "S C Y X"]) -> tuple[Float[Tensor, "S R D"], Bool[Tensor, "S R"]]:
    flat = grids.flatten(2).transpose(1, 2)
    return flat[..., :-1], flat[..., -1] > 0.5


Head = GatedAttention | GridTransformer
HEADS: dict[str, type[GatedAttention] | type[GridTransformer]] = {
    "abmil": GatedAttention,
    "transformer": GridTransformer,
}


@dataclass(frozen=True)
class FittedHead:
    """A trained head with the mean and standard deviation [D] that its input is normalised by."""

    network: Head
    mean: np.ndarray
    std: np.ndarray

    def scores(self, bags: Bags) -> np.ndarray:
        """Class probabilities [S K]."""
        with torch.inference_mode():
            return torch.softmax(self.network(_normalised(bags, self.mean, self.std)), dim=1).numpy()

    def weights(self, bags: Bags) -> np.ndarray:
        """Weight of each region [S Y X]; 0 where there is none."""
        x = _normalised(bags, self.mean, self.std)
        with torch.inference_mode():
            if isinstance(self.network, GatedAttention):
                attention = self.network.weights(*_as_bag(x))[0]
            else:
                encoder = self.network.encoder
                rows = encoder.attention(x, layer=-1, rows=torch.tensor([0]))[:, :, 0, encoder.prefix :]
                attention = rows.mean(dim=1)
                attention = attention / attention.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return attention.reshape(len(bags), *bags.grids.shape[2:]).numpy()


def _normalised(bags: Bags, mean: np.ndarray, std: np.ndarray) -> Tensor:
    x = (bags.grids[:, :-1] - mean[:, None, None]) / std[:, None, None]
    return torch.from_numpy(np.concatenate([x * bags.grids[:, -1:], bags.grids[:, -1:]], axis=1).astype(np.float32))


def statistics(bags: Bags) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of all vectors."""
    vectors = bags.grids[:, :-1].transpose(1, 0, 2, 3)[:, bags.grids[:, -1] > 0.5]
    return vectors.mean(axis=1), np.maximum(vectors.std(axis=1), 1e-6)


def new_head(config: HeadConfig, dim: int, classes: int, seed: int) -> Head:
    """A head with random weights; sets torch's global generator (call it inside ``fork_rng``)."""
    torch.default_generator.manual_seed(seed_number(seed, "head"))
    return HEADS[config.kind](dim, classes, config)


def lr_factor(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine."""
    return min(1.0, (step + 1) / (WARMUP * steps)) * cosine_schedule(1.0, 0.0, step / steps)


def fit_head(bags: Bags, labels: np.ndarray, classes: int, config: HeadConfig, *, seed: int) -> FittedHead:
    """Train one head on all slides as one batch, with the loss balanced over classes.

    Parameters
    ----------
    bags : Bags
        Region vectors of S slides.
    labels : ndarray [S]
        Class index of each slide.
    classes : int
        Number of classes.
    config : HeadConfig
        Kind and training of the head.
    seed : int
        Seed of its weights and of dropout.
    """
    mean, std = statistics(bags)
    x, y = _normalised(bags, mean, std), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        network = new_head(config, bags.dim, classes, seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        counts = torch.bincount(y, minlength=classes).clamp_min(1)
        network.train()
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = config.lr * lr_factor(step, config.steps)
            loss = F.cross_entropy(network(x), y, weight=len(y) / (classes * counts))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return FittedHead(network.eval(), mean, std)
