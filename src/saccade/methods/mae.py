"""Reconstruct masked patches: cheap steps, a start for fine-tuning; plain ViTs (MAE).

He et al. 2022 (MAE, arXiv:2111.06377): the encoder sees the visible patches only, a small decoder gets a mask token for
every other one, the targets are the normalised pixels of each patch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saccade.augment.masks import random_parts
from saccade.base.contracts import Features, Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import ONE_CROP, DatasetFacts, MethodCard, PeakLR, SingleNetworkMethod
from saccade.methods.heads_and_ema import feature_std, seeded, width_of
from saccade.models.nn.blocks import NORM_EPS, Block
from saccade.models.nn.positions import sincos_table


@dataclass(frozen=True)
class MaeConfig:
    """Settings of mae. None: decided from the network."""

    mask_ratio: float = 0.75
    """Fraction of the patches that are masked."""
    decoder_dim: int | None = None
    """Default: half of the encoder's width, a multiple of 32; the paper has 512 for encoders of 768 to 1,280."""
    decoder_depth: int = 2
    """Blocks; the paper has 8. Fewer suffice where the encoder is what counts (its figure 6), and cost less."""
    normalise: bool = True
    """Targets of mean 0 and variance 1 in every patch."""


def resolve_mae(config: MaeConfig, facts: DatasetFacts) -> MaeConfig:
    """Fill every None; UsageError for values out of range."""
    if not 0 < config.mask_ratio < 1:
        raise UsageError("mae.mask_ratio must be a fraction", got=config.mask_ratio, expected="above 0, below 1")
    if config.decoder_depth < 1:
        raise UsageError("mae.decoder_depth must be above 0", got=config.decoder_depth, expected="1 or more")
    return dataclasses.replace(config, decoder_dim=config.decoder_dim or max(32, facts.dim // 2 // 32 * 32))


def patchify(pixels: Float[Tensor, "B C *size"], patch: int) -> Float[Tensor, "B N P"]:
    """Pixels of every patch as one vector: (slices,) rows, columns and, last, channels (as in the paper's code).

    Examples
    --------
    >>> patchify(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 0]
    tensor([0., 1., 4., 5.])
    """
    batch, channels, *size = pixels.shape
    axes = len(size)
    x = pixels.reshape(batch, channels, *(n for side in size for n in (side // patch, patch)))
    order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
    return x.permute(order).reshape(batch, -1, patch**axes * channels)


def mae_loss(
    predicted: Float[Tensor, "B M P"],
    targets: Float[Tensor, "B M P"],
    *,
    normalise: bool,
    present: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over the masked patches, float32.

    Parameters
    ----------
    normalise
        Targets get mean 0 and variance 1 in every patch.
    present
        Of grids of tile features: the masked tiles that exist; the others do not count.

    Examples
    --------
    >>> float(mae_loss(torch.zeros(1, 2, 4), torch.ones(1, 2, 4), normalise=False))
    1.0
    """
    targets = targets.float()
    if normalise:
        targets = (targets - targets.mean(dim=-1, keepdim=True)) / (targets.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    error = (predicted.float() - targets).square()
    return error.mean() if present is None else (error.mean(dim=-1) * present).sum() / present.sum().clamp_min(1)


class Mae(SingleNetworkMethod):
    """A ViT, and a decoder that is used in pretraining only."""

    def __init__(self, network: nn.Module, config: MaeConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        assert config.decoder_dim
        dim = config.decoder_dim
        with seeded(seed):
            self.network = network
            self.embed = nn.Linear(width_of(network), dim)
            self.mask_token = nn.Parameter(torch.empty(dim))
            self.decoder = nn.ModuleList(Block(dim, dim // 32) for _ in range(config.decoder_depth))
            self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
            values = int(network.patch) ** network.settings.axes * int(network.channels)  # type: ignore
            self.draw = nn.Linear(dim, values)
            nn.init.trunc_normal_(self.mask_token, std=0.02)
            for module in (self.embed, *self.decoder.modules(), self.draw):
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def decode(
        self, features: Features, visible: Int[Tensor, "B K"], hidden: Int[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]:
        """Pixels of the masked patches, from the tokens of the visible ones and the image vector."""
        tokens = self.embed(torch.cat([features.cls[:, None], features.tokens], dim=1))
        batch, dim = len(tokens), tokens.shape[-1]
        table = sincos_table(features.grid, dim, tokens.device).to(tokens.dtype).expand(batch, -1, -1)
        positions = [table.gather(1, rows[..., None].expand(-1, -1, dim)) for rows in (visible, hidden)]
        masked = self.mask_token.to(tokens.dtype) + positions[1]
        x = torch.cat([tokens[:, :1], tokens[:, 1:] + positions[0], masked], dim=1)
        for block in self.decoder:
            x = block(x)
        predicted: Tensor = self.draw(self.norm(x[:, -hidden.shape[1] :]))
        return predicted

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        losses, vectors = [], []
        patch = int(self.network.patch)  # type: ignore[arg-type]
        for number, view in enumerate(views):
            assert view.items is not None
            patches = patchify(view.pixels, patch)
            grid = tuple(side // patch for side in view.pixels.shape[2:])
            step = progress.step * len(views) + number
            parts = random_parts(grid, self.config.mask_ratio, seed=self.seed, step=step, items=view.items)
            visible, hidden = (part.to(patches.device) for part in parts)
            features = self.network(view.pixels, keep=visible)
            predicted = self.decode(features, visible, hidden)
            targets = patches.gather(1, hidden[..., None].expand(-1, -1, patches.shape[-1]))
            present = self.network.patch_embed.present(view.pixels)  # type: ignore[operator,union-attr]
            if present is not None:
                present = present.gather(1, hidden)
            losses.append(mae_loss(predicted, targets, normalise=self.config.normalise, present=present))
            vectors.append(features.cls)
        return StepOutput(torch.stack(losses).mean(), {"feature_std": feature_std(torch.cat(vectors))})


CARD = MethodCard(
    name="mae",
    config_cls=MaeConfig,
    resolve=resolve_mae,
    cls=Mae,
    peak_lr=PeakLR(transformer=4e-3, cnn=4e-3),
    needs_masking=True,
    defaults=ONE_CROP,
)
