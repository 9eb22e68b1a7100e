"""lightly's DINO as its documentation assembles it, to run beside saccade: timm ViT, its head, loss, transform, EMA."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
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


class LightlyDino(nn.Module):
    """Student, teacher, heads and loss, as in lightly's DINO example.

    backbone   a network from images to features of width ``dim``; ``bf16``: under autocast, which it does not ship
    """

    def __init__(self, backbone: nn.Module, dim: int, out_dim: int, *, bf16: bool, lr: float = 5e-4):
        super().__init__()
        self.student, self.teacher = backbone, copy.deepcopy(backbone)
        self.student_head = DINOProjectionHead(dim, HIDDEN, BOTTLENECK, out_dim, freeze_last_layer=1)
        self.teacher_head = DINOProjectionHead(dim, HIDDEN, BOTTLENECK, out_dim)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.loss = DINOLoss(output_dim=out_dim, warmup_teacher_temp_epochs=5)
        parameters = [*self.student.parameters(), *self.student_head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.04)
        self.bf16 = bf16

    def step(self, global_views: list[Tensor], local_views: list[Tensor], momentum: float = 0.996) -> float:
        """One optimiser step in the order of lightly's example."""
        update_momentum(self.student, self.teacher, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        autocast = torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        with autocast:
            with torch.no_grad():
                teacher = [self.teacher_head(self.teacher(x).flatten(1)) for x in global_views]
            student = [self.student_head(self.student(x).flatten(1)) for x in [*global_views, *local_views]]
            loss = self.loss(teacher, student, epoch=0)
        loss.backward()
        self.student_head.cancel_last_layer_gradients(current_epoch=0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def abab(ours: Callable[[], int], peer: Callable[[], int], rounds: int) -> tuple[float, float]:
    """Images a second of both, alternating. Each call does some work and returns the number of images.

    The median of the rounds is taken, after one round that is not counted.
    """
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for which, work in enumerate((ours, peer)):
            began = time.perf_counter()
            images = work()
            if turn:
                rates[which].append(images / (time.perf_counter() - began))
    return statistics.median(rates[0]), statistics.median(rates[1])
