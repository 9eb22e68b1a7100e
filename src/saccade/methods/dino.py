"""Two views of one image agree, student and teacher: suits every network, start here (DINO).

Self-distillation with no labels (Caron et al. 2021, arXiv:2104.14294).
The student sees all crops, the teacher only the global ones; the student's output for one crop is trained
towards the teacher's output for another. The teacher is a moving average of the student. Centering and
sharpening of its outputs keep both from collapsing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Progress, StepOutput, View
from saccade.errors import UsageError
from saccade.methods.base import SHORT_STEPS, DatasetFacts, MethodCard, PeakLR, TeacherMethod
from saccade.methods.diagnosis import PROTOTYPE_FAILURES, ChanceLoss
from saccade.methods.heads_and_ema import StudentTeacher, image_vectors, mlp_head, seeded, width_of
from saccade.methods.regularizers import coding_rate_over_views, koleo_over_views
from saccade.runtime import mean_over_ranks, sum_over_ranks

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DinoConfig:
    """Settings of dino. None: decided from the number of images, the batch and the number of steps."""

    out_dim: int | None = None
    """K, the number of prototypes."""
    head_hidden: int | None = None
    bottleneck: int | None = None
    head_norm: Literal["none", "batch"] | None = None
    """Batch norm between the layers of the head; default: for CNNs, whose pooled features are all alike at first, and
    in short runs."""
    student_temp: float = 0.1
    teacher_temp_start: float | None = None
    teacher_temp: float | None = None
    """Reached after the warm-up."""
    temp_warmup_fraction: float = 0.3
    center_momentum: float = 0.9
    centering: Literal["mean", "sinkhorn", "none"] = "mean"
    momentum: float | None = None
    """Of the teacher at the start; a cosine takes it to ``momentum_end``."""
    momentum_end: float = 1.0
    freeze_last_fraction: float | None = None
    """Fraction of the run in which the last layer of the head is frozen."""
    norm_last_layer: bool = True
    """Keep the prototypes at length 1."""
    koleo: float | None = None
    """Weight of the KoLeo regularizer, which keeps the image vectors of a batch apart; 0: plain DINO."""
    coding_rate: float | None = None
    """Weight of the coding rate of the head's bottleneck vectors, which is maximised; 0: plain DINO."""


def resolve_dino(config: DinoConfig, facts: DatasetFacts) -> DinoConfig:
    """Fill every None. The paper's values are for a million images and batches of 1,024.

    out_dim       about one prototype for 8 images, a power of two from 256 to the paper's 65,536
    head          the paper's 2,048 and 256 from 8,192 prototypes on; 512 and 128 below
    momentum      the paper's 0.996 (a memory of 250 steps) for long runs; a memory of a tenth of a run under 1,000
                  steps (0.95 for 200), so that the teacher can follow. 0.9 collapsed (docs/log.md)
    temperatures  0.02 for runs under 20,000 steps: with small batches 0.04 ended at ln K (docs/log.md); longer runs
                  rise from there to the paper's 0.04
    head_norm     batch for CNNs and for runs under 20,000 steps
    coding_rate   SimDINO's 1 for runs under 20,000 steps: without it a few prototypes win for all images and a ViT
                  learns nothing in 200 steps (docs/log.md); none in longer runs, as in the paper
    koleo         DINOv2's 0.1 for runs under 20,000 steps without the coding rate; none in longer runs

    Without the coding rate, and from pretrained weights, which are not to be changed fast, a ViT has no norm in the
    head, and the teacher a memory of at least 100 steps.
    """
    _check(config)
    images, steps, short = facts.images, facts.steps, facts.steps < SHORT_STEPS
    power = 2 ** math.floor(math.log2(max(1, images / 8)))
    out_dim = config.out_dim or min(65536, max(256, power))
    coding_rate = (0.0 if facts.pretrained or not short else 1.0) if config.coding_rate is None else config.coding_rate
    fast = short and coding_rate > 0
    shortest_memory = min(100.0, max(20.0, steps / 10)) if fast else 100.0
    memory_steps = min(250.0, max(shortest_memory, steps / 50))
    end = (0.02 if short else 0.04) if config.teacher_temp is None else config.teacher_temp
    begin = min(0.02, end) if config.teacher_temp_start is None else config.teacher_temp_start
    return dataclasses.replace(
        config,
        out_dim=out_dim,
        head_norm=config.head_norm or ("batch" if facts.batch_norm or fast else "none"),
        head_hidden=config.head_hidden or (2048 if out_dim >= 8192 else 512),
        bottleneck=config.bottleneck or (256 if out_dim >= 8192 else 128),
        teacher_temp_start=begin,
        teacher_temp=end,
        momentum=round(1 - 1 / memory_steps, 5) if config.momentum is None else config.momentum,
        freeze_last_fraction=0.02 if config.freeze_last_fraction is None else config.freeze_last_fraction,
        koleo=(0.1 if short and not coding_rate else 0.0) if config.koleo is None else config.koleo,
        coding_rate=coding_rate,
    )


def _check(config: DinoConfig) -> None:
    """Raise UsageError for values out of range."""
    for name in ("student_temp", "teacher_temp", "teacher_temp_start", "out_dim", "head_hidden", "bottleneck"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise UsageError(f"dino.{name} must be above 0", got=value)
    for name in ("koleo", "coding_rate"):
        weight = getattr(config, name)
        if weight is not None and weight < 0:
            raise UsageError(f"dino.{name} must not be negative", got=weight)
    for name in ("momentum", "momentum_end", "center_momentum", "temp_warmup_fraction", "freeze_last_fraction"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"dino.{name} must be a fraction", got=value, expected="0 to 1")


class Head(nn.Module):
    """Three linear layers, a bottleneck of length 1, and prototypes of length 1: [B D] to [B K] cosines."""

    def __init__(self, dim: int, config: DinoConfig):
        super().__init__()
        assert config.out_dim and config.head_hidden and config.bottleneck
        self.mlp = mlp_head(
            [dim, config.head_hidden, config.head_hidden, config.bottleneck], config.head_norm or "none"
        )
        self.prototypes = nn.Parameter(torch.empty(config.out_dim, config.bottleneck))
        # The official code leaves this layer with the initialisation of nn.Linear. Its scale has no effect on the
        # answer, but sets how far one update turns a prototype.
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))
        # Weight normalisation splits a vector into length and direction; here the length is a parameter or 1.
        self.length = None if config.norm_last_layer else nn.Parameter(torch.ones(config.out_dim, 1))

    def last_layer(self) -> list[nn.Parameter]:
        return [self.prototypes] if self.length is None else [self.prototypes, self.length]

    def bottleneck(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """The vectors that are compared with the prototypes: length 1, float32."""
        x = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(x.float(), dim=1)

    def cosines(self, vectors: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Cosines of bottleneck vectors and prototypes."""
        prototypes = F.normalize(self.prototypes, dim=1)
        if self.length is not None:
            prototypes = prototypes * self.length
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ prototypes.T

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return self.cosines(self.bottleneck(x))


def center_and_sharpen(
    logits: Float[Tensor, "... K"], center: Float[Tensor, "K"], temperature: float
) -> Float[Tensor, "... K"]:
    """Output of the teacher: softmax((logits - center) / temperature), float32 (equation 1 and section 3.1).

    Examples
    --------
    >>> center_and_sharpen(torch.zeros(1, 4), torch.zeros(4), 0.04)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return torch.softmax((logits.float() - center) / temperature, dim=-1)


def sinkhorn(
    logits: Float[Tensor, "B K"], temperature: float, sum_ranks: Reduce, iterations: int = 3
) -> Float[Tensor, "B K"]:
    """Sinkhorn-Knopp (Caron et al. 2020, SwAV): rows sum to 1 and every prototype is used about equally, float32.

    Parameters
    ----------
    sum_ranks
        Adds a tensor over all processes, so that the whole batch is balanced together.

    Examples
    --------
    >>> sinkhorn(torch.eye(2), 0.1, lambda x: x).sum(dim=1)
    tensor([1., 1.])
    """
    logits = logits.float()
    # exp() of raw cosines at low temperatures leaves float32; any shift that all processes share cancels.
    largest = sum_ranks(torch.stack([logits.max() if len(logits) else logits.new_zeros(()), logits.new_ones(())]))
    q = torch.exp((logits - largest[0] / largest[1]) / temperature)
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(iterations):
        q = q / sum_ranks(q.sum(dim=0)).clamp_min(tiny)
        q = q / q.sum(dim=1, keepdim=True)
    return q


def dino_loss(
    student_logits: Float[Tensor, "V B K"], teacher_probs: Float[Tensor, "G B K"], student_temp: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all pairs of a teacher view and another student view (equation 3), float32.

    The views of the teacher are the first G of the student's. The sum over all pairs is the product of two sums;
    the pairs of a view with itself are then subtracted.

    Parameters
    ----------
    student_logits
        Outputs of the student's head for all views, before the softmax.
    teacher_probs
        Outputs of the teacher for the global views; no gradient.

    Raises
    ------
    UsageError
        With fewer than two views.

    Examples
    --------
    The loss of a teacher and a student that are undecided between K prototypes is ln K.

    >>> loss = dino_loss(torch.zeros(2, 8, 16), torch.full((2, 8, 16), 1 / 16), 0.1)
    >>> round(float(loss), 4), round(math.log(16), 4)
    (2.7726, 2.7726)
    """
    views, batch, _ = student_logits.shape
    global_views = teacher_probs.shape[0]
    if views < 2:
        raise UsageError(
            "DINO compares different views of an image",
            got="one view",
            expected="two or more",
            hint="raise --set views.global_count or views.local_count",
        )
    log_student = F.log_softmax(student_logits.float() / student_temp, dim=-1)
    teacher = teacher_probs.float()
    # Element by element, not as a matrix product: one float32 dot product over all B * K terms is 0.6 % low for
    # K = 65,536 and hides that a loss sits at ln K; and autocast or TF32 would round its factors.
    all_pairs = (teacher.sum(dim=0) * log_student.sum(dim=0)).sum()
    same_view = (teacher * log_student[:global_views]).sum()
    return (same_view - all_pairs) / (batch * global_views * (views - 1))


def teacher_temperature(config: DinoConfig, progress: Progress) -> float:
    """Linear warm-up from ``teacher_temp_start`` to ``teacher_temp``."""
    start, end = config.teacher_temp_start, config.teacher_temp
    assert start is not None and end is not None
    return start + (end - start) * min(1.0, progress.fraction / max(1e-9, config.temp_warmup_fraction))


def entropy(probs: Float[Tensor, "... K"]) -> Float[Tensor, "..."]:
    """Entropy over the last axis, in nats.

    Examples
    --------
    >>> float(entropy(torch.tensor([0.0, 1.0])))
    0.0
    """
    terms: Tensor = torch.special.entr(probs)
    return terms.sum(dim=-1)


def freeze_last_layers(heads: Sequence[Head], fraction: float | None, progress: Progress) -> None:
    """Drop the gradients of the prototypes in the first ``fraction`` of the run: they must not decay either."""
    assert fraction is not None
    if progress.fraction < fraction:
        for parameter in (p for head in heads for p in head.last_layer()):
            parameter.grad = None


class Dino(TeacherMethod):
    """Student and teacher (backbone and head each), and the running center.

    student and teacher are two backbones of the same shape; the teacher starts as a copy of the student.
    Batch norm in the teacher uses the batch while training, as in the official code, and keeps running
    averages of its own: they see global crops only, as evaluation does.
    """

    center: Tensor
    pending_center: Tensor
    pending_count: Tensor

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DinoConfig, *, seed: int):
        super().__init__()
        self.config = config
        dim = width_of(student)
        with seeded(seed):
            self.student, self.student_head = student, Head(dim, config)
            self.teacher, self.teacher_head = teacher, Head(dim, config)
        self.ema = StudentTeacher(
            (student, self.student_head),
            (teacher, self.teacher_head),
            momentum=config.momentum,
            momentum_end=config.momentum_end,
        )
        assert config.out_dim
        self.register_buffer("center", torch.zeros(config.out_dim))
        self.register_buffer("pending_center", torch.zeros(config.out_dim))
        self.register_buffer("pending_count", torch.zeros(()))

    def step(self, views: list[View], progress: Progress) -> StepOutput:
        global_views = [v for v in views if v.role == "global"]
        batch, count = len(views[0].pixels), len(global_views)
        with torch.no_grad():
            teacher_out = self.teacher(torch.cat([v.pixels for v in global_views])).cls
            teacher_logits = self.teacher_head(teacher_out)
            probs = self._targets(teacher_logits, progress).view(count, batch, -1)
        features = image_vectors(self.student, views)
        vectors = self.student_head.bottleneck(features)
        student_logits = self.student_head.cosines(vectors).view(len(views), batch, -1)
        loss = dino_loss(student_logits, probs, self.config.student_temp)
        with torch.no_grad():
            self.pending_center += teacher_logits.mean(dim=0)
            self.pending_count += 1
            logs = self._logs(loss.detach(), student_logits[:count].detach(), probs)
        # What is logged as the loss is the cross-entropy: it is read beside ln K.
        logs |= {"momentum": self.ema.momentum(progress), "loss": loss.detach()}
        if self.config.koleo:
            koleo = koleo_over_views(features[: count * batch].view(count, batch, -1))
            loss, logs = loss + self.config.koleo * koleo, logs | {"koleo": koleo.detach()}
        if self.config.coding_rate:
            rate = coding_rate_over_views(vectors[: count * batch].view(count, batch, -1))
            loss, logs = loss - self.config.coding_rate * rate, logs | {"coding_rate": rate.detach()}
        return StepOutput(loss, logs)

    def before_update(self, progress: Progress) -> None:
        freeze_last_layers([self.student_head], self.config.freeze_last_fraction, progress)

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        """Update center (equation 4) and teacher once per optimizer step, however many micro-batches it had."""
        if self.config.centering != "none":
            mean = mean_over_ranks(self.pending_center / self.pending_count)
            # A center that starts from 0 lets one prototype win for the first dozen steps.
            self.center.lerp_(mean, 1 - self.config.center_momentum if self.center.any() else 1.0)
        self.pending_center.zero_()
        self.pending_count.zero_()
        self.ema.update(progress)

    def _targets(self, logits: Tensor, progress: Progress) -> Tensor:
        temperature = teacher_temperature(self.config, progress)
        if self.config.centering == "sinkhorn":
            return sinkhorn(logits, temperature, sum_over_ranks)
        return center_and_sharpen(logits, self.center, temperature)

    def _logs(self, loss: Tensor, student_logits: Tensor, probs: Tensor) -> dict[str, Tensor | float]:
        teacher_entropy = entropy(probs).mean()
        student_probs = torch.softmax(student_logits / self.config.student_temp, dim=-1)
        return {
            "teacher_entropy": teacher_entropy,
            "kl": loss - teacher_entropy,
            "student_entropy": entropy(student_probs).mean(),
            "marginal_entropy": entropy(probs.flatten(0, 1).mean(dim=0)),
            "center_norm": self.center.norm(),
        }


def chance_loss(config: DinoConfig, batch: int) -> ChanceLoss | None:
    """ln K: every prototype is as likely as any other."""
    if not config.out_dim:
        return None
    return ChanceLoss(f"ln {config.out_dim}", math.log(config.out_dim))


CARD = MethodCard(
    name="dino",
    config_cls=DinoConfig,
    resolve=resolve_dino,
    cls=Dino,
    peak_lr=PeakLR(transformer=5e-4, cnn=8e-3),
    short_lr=PeakLR(transformer=4e-3, cnn=8e-3),
    has_teacher=True,
    chance_loss=chance_loss,
    failure_modes=PROTOTYPE_FAILURES,
)
