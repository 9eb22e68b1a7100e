"""Where does one patch lie beside another? Images with a layout (organs), less so tissue.

Relative patch location, eight classes (Doersch, Gupta and Efros 2015, arXiv:1505.05192). Two tiles are cropped from a
view: the middle one of a 3 x 3 arrangement and one of its eight neighbours. Gaps and jitter keep lines from continuing
from tile to tile; one random channel per tile removes the chromatic aberration of lenses as a cue (section 3.1).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.base.random import uniforms
from saccade.errors import UsageError
from saccade.methods.base import ONE_CROP, DatasetFacts, MethodCard, PeakLR, SingleNetworkMethod
from saccade.methods.diagnosis import ChanceLoss, guessing
from saccade.methods.heads_and_ema import feature_std, mlp_head, seeded, width_of

NEIGHBOURS = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])


@dataclass(frozen=True)
class RelativePositionConfig:
    """Settings of relative_position. None: decided from the size of a view."""

    tile_px: int | None = None
    """Side of a tile; default: a quarter of the view, a multiple of the network's patch."""
    jitter_px: int | None = None
    """Largest shift of a tile along an axis; default: a third of the gap between tiles."""
    drop_channels: bool = True
    """Show each tile in one channel only; no effect on images with one channel."""
    hidden: int = 512


def resolve_relative_position(config: RelativePositionConfig, facts: DatasetFacts) -> RelativePositionConfig:
    """Fill every None; UsageError where three tiles do not fit side by side."""
    tile = config.tile_px or max(1, facts.view_px // (4 * facts.unit_px)) * facts.unit_px
    gap = (facts.view_px - 3 * tile) // 2
    if tile % facts.unit_px or gap < 0:
        raise UsageError(
            "three tiles do not fit side by side in a view",
            got=f"tiles of {tile} px in views of {facts.view_px} px",
            expected=f"multiples of {facts.unit_px} px, at most a third of the view",
            hint=f"--size {4 * facts.unit_px} or more, or a smaller patch",
        )
    jitter = gap // 3 if config.jitter_px is None else config.jitter_px
    if not 0 <= jitter <= gap // 2:
        raise UsageError("relative_position.jitter_px makes tiles overlap", got=jitter, expected=f"0 to {gap // 2}")
    return dataclasses.replace(config, tile_px=tile, jitter_px=jitter)


def crop(x: Float[Tensor, "B C S S"], corners: Int[Tensor, "B 2"], side: int) -> Float[Tensor, "B C s s"]:
    """A square of every image, given its top left corner (row, column).

    Examples
    --------
    >>> crop(torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([[1, 1]]), 2)[0, 0, 0]
    tensor([4., 5.])
    """
    steps = torch.arange(side, device=x.device)
    rows, columns = (corners[:, axis, None].to(x.device) + steps for axis in (0, 1))
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def one_channel(x: Float[Tensor, "B C s s"], channel: Int[Tensor, "B"]) -> Float[Tensor, "B C s s"]:
    """Each tile with one channel; the others get their mean, 0."""
    return x * F.one_hot(channel, x.shape[1]).to(x)[:, :, None, None]


class RelativePosition(SingleNetworkMethod):
    """A backbone and a classifier of the vectors of two tiles."""

    def __init__(self, network: nn.Module, config: RelativePositionConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        with seeded(seed):
            self.network = network
            self.head = mlp_head([2 * width_of(network), config.hidden, config.hidden, 8], "layer")

    def tiles(self, view: View, step: int) -> tuple[Float[Tensor, "M C s s"], Int[Tensor, "B"]]:
        """The middle tile of every image and a neighbour of it, and which of the eight that is."""
        tile, jitter = self.config.tile_px, self.config.jitter_px
        assert tile is not None and jitter is not None and view.items is not None
        x, side = view.pixels, view.pixels.shape[-1]
        u = torch.from_numpy(uniforms(self.seed, step, view.items.numpy(), 7, "tiles"))
        labels = (u[:, 0] * 8).long()
        pitch = (side - tile) // 2
        jitters = (u[:, 1:5] * (2 * jitter + 1)).long() - jitter
        middle = torch.full((len(x), 2), pitch)
        corners = [middle + jitters[:, :2], middle + NEIGHBOURS[labels] * pitch + jitters[:, 2:]]
        tiles = [crop(x, corner.clamp(0, side - tile), tile) for corner in corners]
        if self.config.drop_channels and x.shape[1] > 1:
            channels = [(u[:, 5 + i] * x.shape[1]).long() for i in (0, 1)]
            tiles = [one_channel(t, c) for t, c in zip(tiles, channels)]
        return torch.cat(tiles), labels.to(x.device)

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        losses, accuracies, vectors_of_views = [], [], []
        for number, view in enumerate(views):
            tiles, labels = self.tiles(view, progress.step * len(views) + number)
            vectors = self.network(tiles).cls
            middle, neighbour = vectors.view(2, len(labels), -1)
            with torch.autocast(tiles.device.type, enabled=False):
                scores = self.head(torch.cat([middle, neighbour], dim=1).float())
            losses.append(F.cross_entropy(scores, labels))
            accuracies.append((scores.argmax(dim=1) == labels).float().mean())
            vectors_of_views.append(vectors)
        logs = {
            "accuracy": torch.stack(accuracies).mean(),
            "feature_std": feature_std(torch.cat(vectors_of_views)),
        }
        return StepOutput(torch.stack(losses).mean(), logs)


CARD = MethodCard(
    name="relative_position",
    config_cls=RelativePositionConfig,
    resolve=resolve_relative_position,
    cls=RelativePosition,
    peak_lr=PeakLR(transformer=2e-3, cnn=8e-3),
    supports_volumes=False,
    defaults=ONE_CROP,
    chance_loss=lambda config, batch: ChanceLoss("ln 8", math.log(8)),
    failure_modes=(
        guessing("these images have no layout: nothing in a patch tells where it lies", "another --method"),
    ),
)
