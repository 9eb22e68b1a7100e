"""Views of one image against all other images: large batches, 256 and more (MoCo v3).

Contrastive learning with a momentum encoder (Chen, Xie and He 2021, arXiv:2104.02057). Two views of one image agree,
views of different images do not: InfoNCE over the batch, keys from a teacher that follows the student, a predictor on
the student's side.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import TWO_GLOBAL_VIEWS, DatasetFacts, MethodCard, PeakLR, TeacherMethod
from saccade.methods.diagnosis import ChanceLoss, guessing
from saccade.methods.heads_and_ema import (
    HeadNorm,
    StudentTeacher,
    feature_std,
    image_vectors,
    mlp_head,
    seeded,
    width_of,
)
from saccade.runtime import gather_over_ranks, rank


@dataclass(frozen=True)
class MocoV3Config:
    """Settings of moco_v3. None: decided from the data and the length of the run."""

    out_dim: int = 256
    hidden: int | None = None
    """Width of projection and predictor; default: the paper's 4,096 from 100,000 images on, 1,024 below."""
    head_norm: HeadNorm = "batch"
    temperature: float = 0.2
    momentum: float | None = None
    """Of the teacher, at the start; default: the paper's 0.99. A cosine takes it to ``momentum_end``."""
    momentum_end: float = 1.0


def resolve_moco_v3(config: MocoV3Config, facts: DatasetFacts) -> MocoV3Config:
    """Fill every None; UsageError for values out of range."""
    if config.temperature <= 0:
        raise UsageError("moco_v3.temperature must be above 0", got=config.temperature)
    if facts.n_compared < 2:
        raise UsageError(
            "moco_v3 compares each image with others of its batch", got="a batch of 1", hint="--batch 64 or more"
        )
    return dataclasses.replace(
        config,
        hidden=config.hidden or (4096 if facts.images >= 100_000 else 1024),
        momentum=0.99 if config.momentum is None else config.momentum,
    )


def info_nce(
    queries: Float[Tensor, "B D"], keys: Float[Tensor, "M D"], first: int, temperature: float
) -> Float[Tensor, ""]:
    """Contrastive loss of MoCo v3 (algorithm 1), float32: 2 t times the cross-entropy of each query's key among all.

    The factor 2 t keeps the size of the gradient the same for every temperature.

    Parameters
    ----------
    queries
        Vectors of the student; scaled to length 1 here.
    keys
        Vectors of the teacher on all processes; those of these images begin at row ``first``.
    temperature
        t.

    Examples
    --------
    >>> vectors = torch.eye(2)
    >>> round(float(info_nce(vectors, vectors, 0, 0.2)), 4)
    0.0027
    """
    queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
    positives = first + torch.arange(len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(queries @ keys.T / temperature, positives)


class MocoV3(TeacherMethod):
    """Student (backbone, projection, predictor) and teacher (backbone, projection)."""

    def __init__(self, student: nn.Module, teacher: nn.Module, config: MocoV3Config, *, seed: int):
        super().__init__()
        self.config = config
        assert config.hidden
        dim, hidden, out = width_of(student), config.hidden, config.out_dim
        with seeded(seed):
            self.student, self.teacher = student, teacher
            self.student_head = mlp_head([dim, hidden, hidden, out], config.head_norm)
            self.teacher_head = mlp_head([dim, hidden, hidden, out], config.head_norm)
            self.predictor = mlp_head([out, hidden, out], config.head_norm)
        self.ema = StudentTeacher(
            (student, self.student_head),
            (teacher, self.teacher_head),
            momentum=config.momentum,
            momentum_end=config.momentum_end,
        )

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        if len(views) < 2 or any(view.role != "global" for view in views):
            raise UsageError("moco_v3 compares global views", hint="--set views.global_count=2 views.local_count=0")
        batch = len(views[0].pixels)
        vectors = image_vectors(self.student, views)
        queries = self.predictor(self.student_head(vectors)).view(len(views), batch, -1)
        with torch.no_grad():
            teacher_out = self.teacher_head(image_vectors(self.teacher, views)).view(len(views), batch, -1)
            keys = [gather_over_ranks(view) for view in teacher_out]
        first = rank() * batch
        losses = [
            info_nce(query, key, first, self.config.temperature)
            for i, query in enumerate(queries)
            for j, key in enumerate(keys)
            if i != j
        ]
        loss = torch.stack(losses).sum() / (len(views) - 1)
        with torch.no_grad():
            similarity = F.normalize(queries[0].float(), dim=1) @ F.normalize(keys[1].float(), dim=1).T
            correct = similarity.argmax(dim=1) == first + torch.arange(batch, device=similarity.device)
        return StepOutput(loss, {"accuracy": correct.float().mean(), "feature_std": feature_std(vectors)})

    def before_update(self, progress: Progress) -> None:
        """Nothing: gradients are used as they are."""

    def after_update(self, progress: Progress) -> None:
        self.ema.update(progress)


def chance_loss(config: MocoV3Config, batch: int) -> ChanceLoss:
    """Every key is as likely as any other; two views, and the factor 2 t of the loss."""
    return ChanceLoss(f"4 x {config.temperature:g} x ln {batch}", 4 * config.temperature * math.log(batch))


CARD = MethodCard(
    name="moco_v3",
    config_cls=MocoV3Config,
    resolve=resolve_moco_v3,
    cls=MocoV3,
    peak_lr=PeakLR(transformer=4e-3, cnn=1.2e-2),
    has_teacher=True,
    min_batch=2,
    defaults=TWO_GLOBAL_VIEWS,
    chance_loss=chance_loss,
    failure_modes=(guessing("two views share too little to be matched, or the run is young"),),
)
