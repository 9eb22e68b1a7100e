"""lightly's DINO as its documentation assembles it, to run beside saccade: timm ViT, its head, loss, transform, EMA."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

HIDDEN, BOTTLENECK = 2048, 256  # of the head, in both tools
VIT = {"tiny": (192, 3), "small": (384, 6)}  # width, heads; 12 blocks


def timm_vit(size: str, patch: int, size_px: int) -> nn.Module:
    """timm's ViT that accepts crops of any size, features of the class token."""
    width, heads = VIT[size]
    return VisionTransformer(
        img_size=size_px,
        patch_size=patch,
        embed_dim=width,
        num_heads=heads,
        depth=12,
        num_classes=0,
        dynamic_img_size=True,
    )


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """For ViTs: the learning rate and weight decay of the DINO paper, which lightly's benchmarks follow."""
    return torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.04)


def sgd(parameters: list[nn.Parameter], batch: int) -> torch.optim.Optimizer:
    """For small ResNets: lightly's published benchmark on CIFAR-10."""
    return torch.optim.SGD(parameters, lr=6e-2 * batch / 128, momentum=0.9, weight_decay=5e-4)


def transform(global_px: int, local_px: int, local_count: int, **others: Any) -> DINOTransform:
    """lightly's views with its own strengths; ``others``: more of its arguments."""
    return DINOTransform(global_crop_size=global_px, local_crop_size=local_px, n_local_views=local_count, **others)


class LightlyDino(nn.Module):
    """Student, teacher, heads and loss, as in lightly's DINO example.

    backbone     a network from images to features of width ``dim``
    batch_norm   in the head, as lightly has it for small ResNets
    bf16         under autocast, which it does not ship
    sizes        hidden width and bottleneck of the head; teacher_temp: None is lightly's 0.04
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        out_dim: int,
        *,
        bf16: bool = False,
        batch_norm: bool = False,
        sizes: tuple[int, int] = (HIDDEN, BOTTLENECK),
        teacher_temp: float | None = None,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = adamw,
    ):
        super().__init__()
        self.student, self.teacher = backbone, copy.deepcopy(backbone)
        frozen = -1 if batch_norm else 1  # its CIFAR-10 benchmark freezes nothing
        self.student_head = DINOProjectionHead(dim, *sizes, out_dim, batch_norm=batch_norm, freeze_last_layer=frozen)
        self.teacher_head = DINOProjectionHead(dim, *sizes, out_dim, batch_norm=batch_norm)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        warm = {"warmup_teacher_temp": teacher_temp, "teacher_temp": teacher_temp} if teacher_temp else {}
        self.loss = DINOLoss(output_dim=out_dim, warmup_teacher_temp_epochs=5, **warm)
        parameters = [*self.student.parameters(), *self.student_head.parameters()]
        self.optimizer = optimizer(parameters)
        self.bf16 = bf16

    def step(
        self, global_views: list[Tensor], local_views: list[Tensor], momentum: float = 0.996, epoch: int = 0
    ) -> float:
        """One optimiser step in the order of lightly's example; ``epoch`` warms up the teacher's temperature."""
        update_momentum(self.student, self.teacher, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        autocast = torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        with autocast:
            with torch.no_grad():
                teacher = [self.teacher_head(self.teacher(x).flatten(1)) for x in global_views]
            student = [self.student_head(self.student(x).flatten(1)) for x in [*global_views, *local_views]]
            loss = self.loss(teacher, student, epoch=epoch)
        loss.backward()
        self.student_head.cancel_last_layer_gradients(current_epoch=epoch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
