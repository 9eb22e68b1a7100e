"""Predict the features of masked blocks, without colour augmentation; plain ViTs (I-JEPA).

From the visible rest, in the space of features and not of pixels.

Assran et al. 2023 (I-JEPA, arXiv:2301.08243): the context encoder sees what is left of a large block, a narrow
predictor is asked for four target blocks by their places, and a moving average of the encoder, which sees the whole
image, gives the answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from saccade.augment.masks import context_and_targets, first_of
from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import ONE_CROP, Facts, Method, MethodCard, PeakLR
from saccade.methods.heads_and_ema import follow, on_the_way, spread
from saccade.models.nn.blocks import NORM_EPS, Block
from saccade.models.nn.positions import sincos_table
from saccade.runtime import max_over_ranks


@dataclass(frozen=True)
class LatentConfig:
    """Settings of latent. None is decided from the network and the length of the run."""

    predictor_dim: int | None = None
    """Decided: half of the encoder's width, a multiple of 32 (the paper has 384 for 768 to 1,280)."""
    predictor_depth: int = 4
    momentum: float | None = None
    """Of the teacher, at the start; decided: the paper's 0.996 in runs from 5,000 steps on, 0.99 in shorter ones."""
    momentum_end: float = 1.0


def resolve_latent(config: LatentConfig, facts: Facts) -> LatentConfig:
    """Fill every None; UsageError for a depth below 1."""
    if config.predictor_depth < 1:
        raise UsageError("latent.predictor_depth counts blocks", got=config.predictor_depth, expected="1 or more")
    return dataclasses.replace(
        config,
        predictor_dim=config.predictor_dim or max(32, facts.dim // 2 // 32 * 32),
        momentum=(0.996 if facts.steps >= 5_000 else 0.99) if config.momentum is None else config.momentum,
    )


class Predictor(nn.Module):
    """A narrow transformer: tokens of the context, and one token for every place that is asked for."""

    def __init__(self, dim: int, config: LatentConfig):
        super().__init__()
        assert config.predictor_dim
        own = config.predictor_dim
        self.embed, self.back = nn.Linear(dim, own), nn.Linear(own, dim)
        self.mask_token = nn.Parameter(torch.empty(own))
        self.blocks = nn.ModuleList(Block(own, own // 32) for _ in range(config.predictor_depth))
        self.norm = nn.LayerNorm(own, eps=NORM_EPS)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        seen: Float[Tensor, "B K D"],
        context: Int[Tensor, "B K"],
        asked: Int[Tensor, "B M"],
        grid: tuple[int, ...],
    ) -> Float[Tensor, "B M D"]:
        x = self.embed(seen)
        table = sincos_table(grid, x.shape[-1], x.device).to(x.dtype)[0]
        x = torch.cat([x + table[context], self.mask_token.to(x.dtype) + table[asked]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.back(self.norm(x[:, -asked.shape[1] :]))


class Latent(Method):
    """Student and teacher (ViTs), and the predictor. The teacher is what is kept."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: LatentConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.student, self.teacher = student, teacher
            self.predictor = Predictor(int(student.dim), config)  # type: ignore[arg-type]
        self.teacher.load_state_dict(student.state_dict())
        self.teacher.requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    @property
    def learner(self) -> nn.Module:
        return self.student

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.student.named_parameters(prefix="student")
        yield from self.predictor.named_parameters(prefix="predictor")

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        losses, found = [], []
        for number, view in enumerate(views):
            assert view.items is not None
            with torch.no_grad():
                whole = self.teacher(view.pixels)
                answers = F.layer_norm(whole.tokens.float(), whole.tokens.shape[-1:])
            step = progress.step * len(views) + number
            allowed, blocks = context_and_targets(whole.grid, seed=self.seed, step=step, items=view.items)
            # As many as the image with the fewest has, on any process: a batch is one tensor.
            count = int(-max_over_ranks(-float(allowed.sum(dim=1).min())))
            context = first_of(allowed, count, seed=self.seed, step=step, items=view.items).to(answers.device)
            seen = self.student(view.pixels, keep=context).tokens
            targets = blocks.shape[1]
            asked = blocks.flatten(0, 1).to(answers.device)
            guesses = self.predictor(
                seen.repeat_interleave(targets, dim=0), context.repeat_interleave(targets, dim=0), asked, whole.grid
            )
            wanted = answers.repeat_interleave(targets, dim=0)
            wanted = wanted.gather(1, asked[..., None].expand(-1, -1, wanted.shape[-1]))
            losses.append(F.smooth_l1_loss(guesses.float(), wanted))
            found.append(whole.tokens.mean(dim=1))
        return StepOutput(torch.stack(losses).mean(), {"spread": spread(torch.cat(found))})

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        assert self.config.momentum is not None
        momentum = on_the_way(self.config.momentum, self.config.momentum_end, progress.fraction)
        follow((self.teacher,), (self.student,), momentum)


CARD = MethodCard(
    name="latent",
    config_cls=LatentConfig,
    resolve=resolve_latent,
    cls=Latent,
    peak_lr=PeakLR(transformer=5e-4, cnn=5e-4),
    has_teacher=True,
    needs_masking=True,
    defaults={**ONE_CROP, "model.pool": "mean"},
)
