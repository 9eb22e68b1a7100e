"""DINO and masked patches besides: plain ViTs whose patch tokens you need (maps, segmentation).

DINO on the image, iBOT on hidden patches, KoLeo on the vectors (Oquab et al. 2023, DINOv2, arXiv:2304.07193).

The student sees global crops with patches hidden and is trained towards the teacher's answers for the image and, at the
hidden places, for the patch (Zhou et al. 2022, iBOT, arXiv:2111.07832). Sinkhorn-Knopp takes the place of the centre.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.augment.masks import hidden_blocks
from saccade.base.contracts import Hidden, Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import Facts, Method, MethodCard, PeakLR
from saccade.methods.diagnosis import PROTOTYPE_FAILURES
from saccade.methods.dino import DinoConfig, Head, dino_loss, entropy, koleo_loss, resolve_dino, sinkhorn
from saccade.methods.heads_and_ema import follow, image_vectors, on_the_way
from saccade.runtime import gather_over_ranks, rank, sum_over_ranks


@dataclass(frozen=True)
class DinoV2Config:
    """Settings of dinov2. None is decided as for dino, from the number of images, the batch and the steps."""

    out_dim: int | None = None
    head_hidden: int | None = None
    bottleneck: int | None = None
    shared_head: bool = False
    """One head for images and patches (iBOT, small data); DINOv2 parts them."""
    student_temp: float = 0.1
    teacher_temp_start: float | None = None
    teacher_temp: float | None = None
    temp_warmup_fraction: float = 0.3
    momentum: float | None = None
    momentum_end: float = 1.0
    freeze_last_fraction: float | None = None
    koleo: float = 0.1
    patches: float = 1.0
    """Weight of the loss on hidden patches."""
    mask_prob: float = 0.5
    """Share of the global crops that have patches hidden."""
    mask_share: tuple[float, float] = (0.1, 0.5)
    """Of their patches."""


def _as_dino(config: DinoV2Config) -> DinoConfig:
    names = {field.name for field in dataclasses.fields(DinoConfig)} & {f.name for f in dataclasses.fields(config)}
    return DinoConfig(**{name: getattr(config, name) for name in names}, centering="sinkhorn")


def resolve_dinov2(config: DinoV2Config, facts: Facts) -> DinoV2Config:
    """Fill every None by the rules of dino; UsageError for shares that are none."""
    low, high = config.mask_share
    if not (0 <= config.mask_prob <= 1 and 0 < low <= high < 1):
        got = f"mask_prob {config.mask_prob}, mask_share {config.mask_share}"
        raise UsageError("dinov2.mask_prob and mask_share are shares", got=got, expected="0 to 1, low to high")
    if config.patches < 0:
        raise UsageError("dinov2.patches must not be negative", got=config.patches)
    found = resolve_dino(_as_dino(config), facts)
    decided = ("out_dim", "head_hidden", "bottleneck", "teacher_temp_start", "teacher_temp", "momentum")
    return dataclasses.replace(
        config,
        **{name: getattr(found, name) for name in decided},
        freeze_last_fraction=found.freeze_last_fraction,
    )


def patch_loss(
    student: Float[Tensor, "M K"], teacher: Float[Tensor, "M K"], weights: Float[Tensor, "M"], student_temp: float
) -> Float[Tensor, ""]:
    """Cross-entropy at the hidden patches, float32. weights: of each patch, so that every image counts alike."""
    crosses = -(teacher.float() * F.log_softmax(student.float() / student_temp, dim=-1)).sum(dim=-1)
    return (crosses * weights).sum()


class DinoV2(Method):
    """Student and teacher (ViTs with their heads), and the token that stands for hidden patches."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DinoV2Config, *, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        dim, head = int(student.dim), dataclasses.replace(_as_dino(config), head_norm="none")  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.student, self.teacher = student, teacher
            self.student_head, self.teacher_head = Head(dim, head), Head(dim, head)
            self.student_patch_head = None if config.shared_head else Head(dim, head)
            self.teacher_patch_head = None if config.shared_head else Head(dim, head)
            self.mask_token = nn.Parameter(torch.empty(dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        for one, other in zip(self._parts("teacher"), self._parts("student"), strict=True):
            one.load_state_dict(other.state_dict())
            one.requires_grad_(False)

    def _parts(self, side: str) -> list[nn.Module]:
        names = (side, f"{side}_head", f"{side}_patch_head")
        return [part for part in (getattr(self, name) for name in names) if part is not None]

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    @property
    def learner(self) -> nn.Module:
        return self.student

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "mask_token", self.mask_token
        for name in ("student", "student_head", "student_patch_head"):
            part = getattr(self, name)
            if part is not None:
                yield from part.named_parameters(prefix=name)

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        config, batch = self.config, len(views[0].pixels)
        global_views = [v for v in views if v.role == "global"]
        count = len(global_views)
        pixels = torch.cat([v.pixels for v in global_views])
        temperature = self._temperature(progress)
        with torch.no_grad():
            told = self.teacher(pixels)
            probs = sinkhorn(self.teacher_head(told.cls), temperature, sum_over_ranks).view(count, batch, -1)
        where = self._hidden(global_views, told.grid, progress.step).to(pixels.device)
        seen = self.student(pixels, hidden=Hidden(where, self.mask_token))
        local = [image_vectors(self.student, views[count:])] if len(views) > count else []
        logits = self.student_head(torch.cat([seen.cls, *local])).view(len(views), batch, -1)
        loss = dino_loss(logits, probs, config.student_temp)
        logs = {
            "teacher_entropy": entropy(probs).mean(),
            "kl": loss.detach() - entropy(probs).mean(),
            "marginal_entropy": entropy(probs.flatten(0, 1).mean(dim=0)),
            "loss": loss.detach(),
        }
        total = loss
        if config.patches:
            patches = self._patches(told.tokens, seen.tokens, where, temperature)
            total, logs["patches"] = total + config.patches * patches, patches.detach()
        if config.koleo:
            vectors, first = seen.cls.view(count, batch, -1), rank() * batch
            apart = torch.stack([koleo_loss(view, gather_over_ranks(view), first) for view in vectors]).mean()
            total, logs["koleo"] = total + config.koleo * apart, apart.detach()
        return StepOutput(total, logs)

    def _hidden(self, views: list[View], grid: tuple[int, ...], step: int) -> Tensor:
        found = []
        for number, view in enumerate(views):
            assert view.items is not None
            draw = {"seed": self.seed, "step": step, "items": view.items, "stream": f"view {number}"}
            found.append(hidden_blocks(grid, **draw, prob=self.config.mask_prob, share=self.config.mask_share))  # type: ignore[arg-type]
        return torch.cat(found)

    def _patches(self, told: Tensor, seen: Tensor, where: Tensor, temperature: float) -> Tensor:
        """iBOT's loss: the mean over images that have hidden patches of the mean over those; 0 where none has."""
        if not sum_over_ranks(where.sum()):
            return seen.sum() * 0
        with torch.no_grad():
            teacher = (self.teacher_patch_head or self.teacher_head)(told[where])
            probs = sinkhorn(teacher, temperature, sum_over_ranks)
            counts = where.sum(dim=1, keepdim=True).expand_as(where)[where]
            images = sum_over_ranks(where.any(dim=1).sum()).clamp_min(1)
            world = sum_over_ranks(torch.ones((), device=where.device))
        student = (self.student_patch_head or self.student_head)(seen[where])
        return patch_loss(student, probs, world / (counts * images), self.config.student_temp)

    def before_update(self, progress: Progress) -> None:
        assert self.config.freeze_last_fraction is not None
        if progress.fraction < self.config.freeze_last_fraction:
            for head in self._parts("student")[1:]:
                assert isinstance(head, Head)
                for parameter in head.last_layer():
                    parameter.grad = None

    def after_update(self, progress: Progress) -> None:
        assert self.config.momentum is not None
        momentum = on_the_way(self.config.momentum, self.config.momentum_end, progress.fraction)
        follow(self._parts("teacher"), self._parts("student"), momentum)

    def _temperature(self, progress: Progress) -> float:
        start, end = self.config.teacher_temp_start, self.config.teacher_temp
        assert start is not None and end is not None
        return start + (end - start) * min(1.0, progress.fraction / max(1e-9, self.config.temp_warmup_fraction))


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
