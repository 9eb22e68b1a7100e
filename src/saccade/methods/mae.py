"""Reconstruct masked patches: cheap steps, a start for fine-tuning; plain ViTs (MAE).

Most patches are hidden, and their pixels are drawn from the few that are left.

He et al. 2022 (MAE, arXiv:2111.06377): the encoder sees the visible patches only, a small decoder gets a token for
every hidden one, the targets are the pixels of each patch, normalised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saccade.augment.masks import random_parts
from saccade.base.contracts import Features, Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import ONE_CROP, Facts, Method, MethodCard, PeakLR
from saccade.methods.heads_and_ema import spread
from saccade.models.nn.blocks import NORM_EPS, Block
from saccade.models.nn.positions import sincos_table


@dataclass(frozen=True)
class MaskedConfig:
    """Settings of masked. None is decided from the network."""

    share: float = 0.75
    """Of the patches that are hidden."""
    decoder_dim: int | None = None
    """Decided: half of the encoder's width, a multiple of 32; the paper has 512 for encoders of 768 to 1,280."""
    decoder_depth: int = 2
    """Blocks; the paper has 8. Fewer suffice where the encoder is what counts (its figure 6), and cost less."""
    normalise: bool = True
    """Targets of mean 0 and variance 1 in every patch."""


def resolve_masked(config: MaskedConfig, facts: Facts) -> MaskedConfig:
    """Fill every None; UsageError for values that cannot be meant."""
    if not 0 < config.share < 1:
        raise UsageError("masked.share is a share of the patches", got=config.share, expected="above 0, below 1")
    if config.decoder_depth < 1:
        raise UsageError("masked.decoder_depth counts blocks", got=config.decoder_depth, expected="1 or more")
    return dataclasses.replace(config, decoder_dim=config.decoder_dim or max(32, facts.dim // 2 // 32 * 32))


def patches_of(pixels: Float[Tensor, "B C *size"], patch: int) -> Float[Tensor, "B N P"]:
    """Every patch in a row: its (slices,) rows, columns and, last, its channels (as in the paper's code)."""
    batch, channels, *size = pixels.shape
    axes = len(size)
    x = pixels.reshape(batch, channels, *(n for side in size for n in (side // patch, patch)))
    order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
    return x.permute(order).reshape(batch, -1, patch**axes * channels)


def masked_loss(
    drawn: Float[Tensor, "B M P"],
    wanted: Float[Tensor, "B M P"],
    *,
    normalise: bool,
    there: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over the hidden patches, float32; of a grid over the tiles that are ``there``."""
    wanted = wanted.float()
    if normalise:
        wanted = (wanted - wanted.mean(dim=-1, keepdim=True)) / (wanted.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    error = (drawn.float() - wanted).square()
    return error.mean() if there is None else (error.mean(dim=-1) * there).sum() / there.sum().clamp_min(1)


class Masked(Method):
    """A ViT, and a decoder that is thrown away after."""

    def __init__(self, network: nn.Module, config: MaskedConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        assert config.decoder_dim
        dim = config.decoder_dim
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = network
            self.embed = nn.Linear(int(network.dim), dim)  # type: ignore[arg-type]
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

    @property
    def backbone(self) -> nn.Module:
        return self.network

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.named_parameters()

    def decode(self, seen: Features, visible: Int[Tensor, "B K"], hidden: Int[Tensor, "B M"]) -> Float[Tensor, "B M P"]:
        """The pixels of the hidden patches, from the tokens of the visible ones and the image's vector."""
        tokens = self.embed(torch.cat([seen.cls[:, None], seen.tokens], dim=1))
        batch, dim = len(tokens), tokens.shape[-1]
        table = sincos_table(seen.grid, dim, tokens.device).to(tokens.dtype).expand(batch, -1, -1)
        places = [table.gather(1, rows[..., None].expand(-1, -1, dim)) for rows in (visible, hidden)]
        asked = self.mask_token.to(tokens.dtype) + places[1]
        x = torch.cat([tokens[:, :1], tokens[:, 1:] + places[0], asked], dim=1)
        for block in self.decoder:
            x = block(x)
        return self.draw(self.norm(x[:, -hidden.shape[1] :]))

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        losses, found = [], []
        patch = int(self.network.patch)  # type: ignore[arg-type]
        for number, view in enumerate(views):
            assert view.items is not None
            wanted = patches_of(view.pixels, patch)
            grid = tuple(side // patch for side in view.pixels.shape[2:])
            step = progress.step * len(views) + number
            parts = random_parts(grid, self.config.share, seed=self.seed, step=step, items=view.items)
            visible, hidden = (part.to(wanted.device) for part in parts)
            seen = self.network(view.pixels, keep=visible)
            drawn = self.decode(seen, visible, hidden)
            chosen = wanted.gather(1, hidden[..., None].expand(-1, -1, wanted.shape[-1]))
            present = self.network.patch_embed.present(view.pixels)  # type: ignore[operator,union-attr]
            there = None if present is None else present.gather(1, hidden)
            losses.append(masked_loss(drawn, chosen, normalise=self.config.normalise, there=there))
            found.append(seen.cls)
        return StepOutput(torch.stack(losses).mean(), {"spread": spread(torch.cat(found))})

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        """Nothing: there is no teacher."""


CARD = MethodCard(
    name="masked",
    config_cls=MaskedConfig,
    resolve=resolve_masked,
    cls=Masked,
    peak_lr=PeakLR(transformer=4e-3, cnn=4e-3),
    needs_masking=True,
    defaults=ONE_CROP,
)
