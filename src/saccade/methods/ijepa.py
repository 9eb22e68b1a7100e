"""Predict the features of masked blocks, without colour augmentation; plain ViTs (I-JEPA).

Assran et al. 2023 (I-JEPA, arXiv:2301.08243): the context encoder sees what is left of a large block, a narrow
predictor predicts the features of four target blocks from their positions, and a moving average of the encoder, which
sees the full image, gives the targets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from saccade.augment.masks import context_and_targets, first_of
from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import ONE_CROP, DatasetFacts, MethodCard, PeakLR, TeacherMethod
from saccade.methods.heads_and_ema import StudentTeacher, feature_std, seeded, width_of
from saccade.models.nn.blocks import NORM_EPS, Block
from saccade.models.nn.positions import sincos_table
from saccade.runtime import max_over_ranks


@dataclass(frozen=True)
class IjepaConfig:
    """Settings of ijepa. None: decided from the network and the length of the run."""

    predictor_dim: int | None = None
    """Default: half of the encoder's width, a multiple of 32 (the paper has 384 for 768 to 1,280)."""
    predictor_depth: int = 4
    momentum: float | None = None
    """Of the teacher at the start; default: the paper's 0.996 in runs from 5,000 steps on, 0.99 in shorter ones."""
    momentum_end: float = 1.0


def resolve_ijepa(config: IjepaConfig, facts: DatasetFacts) -> IjepaConfig:
    """Fill every None; UsageError for a depth below 1."""
    if config.predictor_depth < 1:
        raise UsageError("ijepa.predictor_depth must be above 0", got=config.predictor_depth, expected="1 or more")
    return dataclasses.replace(
        config,
        predictor_dim=config.predictor_dim or max(32, facts.dim // 2 // 32 * 32),
        momentum=(0.996 if facts.steps >= 5_000 else 0.99) if config.momentum is None else config.momentum,
    )


class Predictor(nn.Module):
    """A narrow transformer over the tokens of the context and one mask token for every target patch."""

    def __init__(self, dim: int, config: IjepaConfig):
        super().__init__()
        assert config.predictor_dim
        width = config.predictor_dim
        self.embed, self.back = nn.Linear(dim, width), nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(config.predictor_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Float[Tensor, "B K D"],
        context: Int[Tensor, "B K"],
        targets: Int[Tensor, "B M"],
        grid: tuple[int, ...],
    ) -> Float[Tensor, "B M D"]:
        x = self.embed(tokens)
        table = sincos_table(grid, x.shape[-1], x.device).to(x.dtype)[0]
        x = torch.cat([x + table[context], self.mask_token.to(x.dtype) + table[targets]], dim=1)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.back(self.norm(x[:, -targets.shape[1] :]))
        return predicted


class Ijepa(TeacherMethod):
    """Student and teacher (ViTs), and the predictor."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: IjepaConfig, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        with seeded(seed):
            self.student, self.teacher = student, teacher
            self.predictor = Predictor(width_of(student), config)
        self.ema = StudentTeacher((student,), (teacher,), momentum=config.momentum, momentum_end=config.momentum_end)

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        losses, vectors = [], []
        for number, view in enumerate(views):
            assert view.items is not None
            with torch.no_grad():
                teacher_out = self.teacher(view.pixels)
                teacher_tokens = F.layer_norm(teacher_out.tokens.float(), teacher_out.tokens.shape[-1:])
            step = progress.step * len(views) + number
            allowed, blocks = context_and_targets(teacher_out.grid, seed=self.seed, step=step, items=view.items)
            # As many as the image with the fewest has, on any process: a batch is one tensor.
            count = int(-max_over_ranks(-float(allowed.sum(dim=1).min())))
            context = first_of(allowed, count, seed=self.seed, step=step, items=view.items).to(teacher_tokens.device)
            student_tokens = self.student(view.pixels, keep=context).tokens
            n_blocks = blocks.shape[1]
            targets = blocks.flatten(0, 1).to(teacher_tokens.device)
            predicted = self.predictor(
                student_tokens.repeat_interleave(n_blocks, dim=0),
                context.repeat_interleave(n_blocks, dim=0),
                targets,
                teacher_out.grid,
            )
            expected = teacher_tokens.repeat_interleave(n_blocks, dim=0)
            expected = expected.gather(1, targets[..., None].expand(-1, -1, expected.shape[-1]))
            losses.append(F.smooth_l1_loss(predicted.float(), expected))
            vectors.append(teacher_out.tokens.mean(dim=1))
        return StepOutput(torch.stack(losses).mean(), {"feature_std": feature_std(torch.cat(vectors))})

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        self.ema.update(progress)


CARD = MethodCard(
    name="ijepa",
    config_cls=IjepaConfig,
    resolve=resolve_ijepa,
    cls=Ijepa,
    peak_lr=PeakLR(transformer=5e-4, cnn=5e-4),
    has_teacher=True,
    needs_masking=True,
    defaults={**ONE_CROP, "model.pool": "mean"},
)
