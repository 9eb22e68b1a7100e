"""Views of one image against all other images: large batches, 256 and more (MoCo v3).

Contrast with a momentum encoder (Chen, Xie and He 2021, arXiv:2104.02057).

Two views of one image agree, views of different images do not: InfoNCE over the batch, keys from a teacher that
follows the student, a predictor on the student's side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import TWO_GLOBAL_VIEWS, Facts, Method, MethodCard, PeakLR
from saccade.methods.diagnosis import ChanceLoss, guessing
from saccade.methods.heads_and_ema import follow, image_vectors, on_the_way, projection, spread
from saccade.runtime import gather_over_ranks, rank


@dataclass(frozen=True)
class ContrastConfig:
    """Settings of contrast. None is decided from the data and the length of the run."""

    out_dim: int = 256
    hidden: int | None = None
    """Width of projection and predictor; decided: the paper's 4,096 from 100,000 images on, 1,024 below."""
    head_norm: Literal["none", "batch", "layer"] = "batch"
    temperature: float = 0.2
    momentum: float | None = None
    """Of the teacher, at the start; decided: the paper's 0.99, a cosine takes it to 1."""
    momentum_end: float = 1.0


def resolve_contrast(config: ContrastConfig, facts: Facts) -> ContrastConfig:
    """Fill every None; UsageError for values that cannot be meant."""
    if config.temperature <= 0:
        raise UsageError("contrast.temperature must be above 0", got=config.temperature)
    if facts.compared < 2:
        raise UsageError("contrast needs other images to tell apart", got="a batch of 1", hint="--batch 64 or more")
    return dataclasses.replace(
        config,
        hidden=config.hidden or (4096 if facts.images >= 100_000 else 1024),
        momentum=0.99 if config.momentum is None else config.momentum,
    )


def info_nce(
    queries: Float[Tensor, "B D"], keys: Float[Tensor, "M D"], first: int, temperature: float
) -> Float[Tensor, ""]:
    """2 t times the cross-entropy of finding each query's key, row ``first`` on, among all keys (algorithm 1).

    The factor keeps the size of the gradient the same for every temperature t.
    """
    queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
    wanted = first + torch.arange(len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(queries @ keys.T / temperature, wanted)


class Contrast(Method):
    """Student (backbone, projection, predictor) and teacher (backbone, projection)."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: ContrastConfig, *, seed: int):
        super().__init__()
        self.config = config
        assert config.hidden and config.head_norm
        dim, hidden, out = int(student.dim), config.hidden, config.out_dim  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.student, self.teacher = student, teacher
            self.student_head = projection([dim, hidden, hidden, out], config.head_norm)
            self.teacher_head = projection([dim, hidden, hidden, out], config.head_norm)
            self.predictor = projection([out, hidden, out], config.head_norm)
        self.teacher.load_state_dict(student.state_dict())
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        for part in (self.teacher, self.teacher_head):
            part.requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    @property
    def learner(self) -> nn.Module:
        return self.student

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name in ("student", "student_head", "predictor"):
            yield from getattr(self, name).named_parameters(prefix=name)

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        if len(views) < 2 or any(view.role != "global" for view in views):
            raise UsageError("contrast compares global views", hint="--set views.global_count=2 views.local_count=0")
        batch = len(views[0].pixels)
        vectors = image_vectors(self.student, views)
        queries = self.predictor(self.student_head(vectors)).view(len(views), batch, -1)
        with torch.no_grad():
            keys = self.teacher_head(image_vectors(self.teacher, views)).view(len(views), batch, -1)
            everyone = [gather_over_ranks(key) for key in keys]
        first, pairs = rank() * batch, len(views) - 1
        losses = [
            info_nce(query, key, first, self.config.temperature)
            for i, query in enumerate(queries)
            for j, key in enumerate(everyone)
            if i != j
        ]
        loss = torch.stack(losses).sum() / pairs
        with torch.no_grad():
            near = F.normalize(queries[0].float(), dim=1) @ F.normalize(everyone[1].float(), dim=1).T
            right = near.argmax(dim=1) == first + torch.arange(batch, device=near.device)
        return StepOutput(loss, {"found": right.float().mean(), "spread": spread(vectors)})

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        assert self.config.momentum is not None
        momentum = on_the_way(self.config.momentum, self.config.momentum_end, progress.fraction)
        follow((self.teacher, self.teacher_head), (self.student, self.student_head), momentum)


def chance_loss(config: ContrastConfig, batch: int) -> ChanceLoss:
    """Every key is as likely as any other; two views, and the factor 2 t of the loss."""
    return ChanceLoss(f"4 x {config.temperature:g} x ln {batch}", 4 * config.temperature * math.log(batch))


CARD = MethodCard(
    name="contrast",
    config_cls=ContrastConfig,
    resolve=resolve_contrast,
    cls=Contrast,
    peak_lr=PeakLR(transformer=4e-3, cnn=1.2e-2),
    has_teacher=True,
    min_batch=2,
    defaults=TWO_GLOBAL_VIEWS,
    chance_loss=chance_loss,
    failure_modes=(guessing("views share too little to be known again, or the run is young"),),
)
