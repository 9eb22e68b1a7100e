"""DINO and masked patches besides: plain ViTs whose patch tokens you need (maps, segmentation).

DINO on the image, iBOT on hidden patches, KoLeo on the vectors (Oquab et al. 2023, DINOv2, arXiv:2304.07193).

The student sees global crops with masked patches and is trained towards the teacher's outputs for the image and for the
masked patches (Zhou et al. 2022, iBOT, arXiv:2111.07832). Sinkhorn-Knopp replaces the center.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saccade.augment.masks import hidden_blocks
from saccade.base.contracts import Hidden, Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import DatasetFacts, MethodCard, PeakLR, TeacherMethod
from saccade.methods.diagnosis import PROTOTYPE_FAILURES
from saccade.methods.dino import (
    DinoConfig,
    Head,
    dino_loss,
    entropy,
    freeze_last_layers,
    resolve_dino,
    sinkhorn,
    teacher_temperature,
)
from saccade.methods.heads_and_ema import StudentTeacher, image_vectors, seeded, width_of
from saccade.methods.regularizers import koleo_over_views
from saccade.runtime import sum_over_ranks


@dataclass(frozen=True)
class DinoV2Config:
    """Settings of dinov2. None: decided as for dino, from the number of images, the batch and the steps."""

    out_dim: int | None = None
    head_hidden: int | None = None
    bottleneck: int | None = None
    shared_head: bool = False
    """One head for images and patches (iBOT, small data); DINOv2 has two."""
    student_temp: float = 0.1
    teacher_temp_start: float | None = None
    teacher_temp: float | None = None
    temp_warmup_fraction: float = 0.3
    momentum: float | None = None
    momentum_end: float = 1.0
    freeze_last_fraction: float | None = None
    koleo: float = 0.1
    patch_weight: float = 1.0
    """Weight of the loss on masked patches."""
    mask_prob: float = 0.5
    """Fraction of the global crops that have masked patches."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest fraction of masked patches in them."""


def _as_dino(config: DinoV2Config) -> DinoConfig:
    names = {field.name for field in dataclasses.fields(DinoConfig)} & {f.name for f in dataclasses.fields(config)}
    return DinoConfig(**{name: getattr(config, name) for name in names}, centering="sinkhorn", coding_rate=0.0)


def resolve_dinov2(config: DinoV2Config, facts: DatasetFacts) -> DinoV2Config:
    """Fill every None by the rules of dino; UsageError for values out of range."""
    low, high = config.mask_ratio
    if not (0 <= config.mask_prob <= 1 and 0 < low <= high < 1):
        got = f"mask_prob {config.mask_prob}, mask_ratio {config.mask_ratio}"
        raise UsageError("dinov2.mask_prob and mask_ratio must be fractions", got=got, expected="0 to 1, low to high")
    if config.patch_weight < 0:
        raise UsageError("dinov2.patch_weight must not be negative", got=config.patch_weight)
    dino = resolve_dino(_as_dino(config), facts)
    shared = ("out_dim", "head_hidden", "bottleneck", "teacher_temp_start", "teacher_temp", "momentum")
    return dataclasses.replace(
        config,
        **{name: getattr(dino, name) for name in shared},
        freeze_last_fraction=dino.freeze_last_fraction,
    )


def patch_loss(
    student: Float[Tensor, "M K"], teacher: Float[Tensor, "M K"], weights: Float[Tensor, "M"], student_temp: float
) -> Float[Tensor, ""]:
    """Cross-entropy at the masked patches (iBOT, equation 2), float32.

    Parameters
    ----------
    student
        Outputs of the head before the softmax.
    teacher
        Probabilities, no gradient.
    weights
        Of each patch, so that every image counts alike.

    Examples
    --------
    >>> teacher = torch.full((3, 4), 0.25)
    >>> round(float(patch_loss(torch.zeros(3, 4), teacher, torch.full((3,), 1 / 3), 0.1)), 4)  # ln 4
    1.3863
    """
    cross_entropies = -(teacher.float() * F.log_softmax(student.float() / student_temp, dim=-1)).sum(dim=-1)
    return (cross_entropies * weights).sum()


class DinoV2(TeacherMethod):
    """Student and teacher (ViTs with their heads), and the mask token."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DinoV2Config, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        self.dino_config = head = dataclasses.replace(_as_dino(config), head_norm="none")
        dim = width_of(student)
        with seeded(seed):
            self.student, self.teacher = student, teacher
            self.student_head, self.teacher_head = Head(dim, head), Head(dim, head)
            self.student_patch_head = None if config.shared_head else Head(dim, head)
            self.teacher_patch_head = None if config.shared_head else Head(dim, head)
            self.mask_token = nn.Parameter(torch.empty(dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.ema = StudentTeacher(
            (student, *self._heads()),
            (teacher, *(head for head in (self.teacher_head, self.teacher_patch_head) if head is not None)),
            momentum=config.momentum,
            momentum_end=config.momentum_end,
        )

    def _heads(self) -> list[Head]:
        """Of the student."""
        return [head for head in (self.student_head, self.student_patch_head) if head is not None]

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        config, batch = self.config, len(views[0].pixels)
        global_views = [v for v in views if v.role == "global"]
        count = len(global_views)
        pixels = torch.cat([v.pixels for v in global_views])
        temperature = teacher_temperature(self.dino_config, progress)
        with torch.no_grad():
            teacher_out = self.teacher(pixels)
            probs = sinkhorn(self.teacher_head(teacher_out.cls), temperature, sum_over_ranks).view(count, batch, -1)
        mask = self._mask(global_views, teacher_out.grid, progress.step).to(pixels.device)
        student_out = self.student(pixels, hidden=Hidden(mask, self.mask_token))
        local = [image_vectors(self.student, views[count:])] if len(views) > count else []
        logits = self.student_head(torch.cat([student_out.cls, *local])).view(len(views), batch, -1)
        loss = dino_loss(logits, probs, config.student_temp)
        logs = {
            "teacher_entropy": entropy(probs).mean(),
            "kl": loss.detach() - entropy(probs).mean(),
            "marginal_entropy": entropy(probs.flatten(0, 1).mean(dim=0)),
            "loss": loss.detach(),
        }
        total = loss
        if config.patch_weight:
            masked_loss = self._patch_loss(teacher_out.tokens, student_out.tokens, mask, temperature)
            total, logs["patch_loss"] = total + config.patch_weight * masked_loss, masked_loss.detach()
        if config.koleo:
            koleo = koleo_over_views(student_out.cls.view(count, batch, -1))
            total, logs["koleo"] = total + config.koleo * koleo, koleo.detach()
        return StepOutput(total, logs)

    def _mask(self, views: list[View], grid: tuple[int, ...], step: int) -> Bool[Tensor, "GB N"]:
        masks = []
        for number, view in enumerate(views):
            assert view.items is not None
            mask = hidden_blocks(
                grid,
                seed=self.seed,
                step=step,
                items=view.items,
                stream=f"view {number}",
                prob=self.config.mask_prob,
                mask_ratio=self.config.mask_ratio,
            )
            masks.append(mask)
        return torch.cat(masks)

    def _patch_loss(
        self,
        teacher_tokens: Float[Tensor, "GB N D"],
        student_tokens: Float[Tensor, "GB N D"],
        mask: Bool[Tensor, "GB N"],
        temperature: float,
    ) -> Float[Tensor, ""]:
        """iBOT's loss: mean over the images with masked patches of the mean over their patches; 0 where none has."""
        if not sum_over_ranks(mask.sum()):
            return student_tokens.sum() * 0
        with torch.no_grad():
            teacher = (self.teacher_patch_head or self.teacher_head)(teacher_tokens[mask])
            probs = sinkhorn(teacher, temperature, sum_over_ranks)
            counts = mask.sum(dim=1, keepdim=True).expand_as(mask)[mask]
            images = sum_over_ranks(mask.any(dim=1).sum()).clamp_min(1)
            world = sum_over_ranks(torch.ones((), device=mask.device))
        student = (self.student_patch_head or self.student_head)(student_tokens[mask])
        return patch_loss(student, probs, world / (counts * images), self.config.student_temp)

    def before_update(self, progress: Progress) -> None:
        freeze_last_layers(self._heads(), self.config.freeze_last_fraction, progress)

    def after_update(self, progress: Progress) -> None:
        self.ema.update(progress)


CARD = MethodCard(
    name="dinov2",
    config_cls=DinoV2Config,
    resolve=resolve_dinov2,
    cls=DinoV2,
    peak_lr=PeakLR(transformer=5e-4, cnn=8e-3),
    has_teacher=True,
    needs_masking=True,
    failure_modes=PROTOTYPE_FAILURES,
)
