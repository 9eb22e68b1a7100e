"""AdamW (Loshchilov and Hutter 2019) with the schedules of DINO (Caron et al. 2021, section 3.2)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from saccade.base.schedules import cosine_schedule
from saccade.methods.base import Method
from saccade.train.settings import ResolvedOptim

NEW = -1  # the place of what is not in the backbone: heads, decoders, predictors


def learning_rate(config: ResolvedOptim, fraction: float) -> float:
    """Linear warm-up, then a cosine down to ``lr_end``; ``fraction`` of the run done, 0..1."""
    if fraction < config.warmup_fraction:
        return config.lr * fraction / config.warmup_fraction
    rest = (fraction - config.warmup_fraction) / max(1e-9, 1 - config.warmup_fraction)
    return cosine_schedule(config.lr, config.lr_end, rest)


def weight_decay(config: ResolvedOptim, fraction: float) -> float:
    return cosine_schedule(config.weight_decay, config.weight_decay_end, fraction)


def layer_numbers(names: list[str]) -> dict[str, int]:
    """The layer each parameter of a backbone lies in: 0 for what makes tokens, then block after block.

    A block is what the first number of a name counts (``blocks.3``, ``layer2.1``), or the first two where blocks
    lie in numbered stages (``layers.0.blocks.1``). What follows the last block belongs to it.
    """
    layers: dict[str, int] = {}
    last, number = "", 0
    for name in names:
        match = None if name.startswith("patch_embed") else re.match(r"\w+\.\d+(\.blocks\.\d+)?\.", name)
        if match and match[0] != last:
            last, number = match[0], number + 1
        layers[name] = number
    return layers


def make_optimizer(method: Method, config: ResolvedOptim, device: torch.device) -> torch.optim.AdamW:
    """Groups by place: each layer of the backbone has ``layer_decay`` times the rate of the next, what is new has the
    full rate. Matrices with weight decay; biases, norms and other vectors without."""
    numbers = layer_numbers([name for name, _ in method.student_network.named_parameters()])
    layers = {p: numbers[name] for name, p in method.student_network.named_parameters()}
    deepest = max(numbers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for _, p in method.parameters_to_train():
        if not p.requires_grad:
            continue
        layer, matrix = layers.get(p, NEW), p.ndim > 1
        rate = 1.0 if layer == NEW else config.layer_decay ** (deepest - layer)
        key = (NEW if layer == NEW else 0) if config.layer_decay == 1.0 else layer
        start = {"params": [], "decay": matrix, "rate": rate, "new": layer == NEW}
        groups.setdefault((key, matrix), start)["params"].append(p)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, weight_decay=0.0, fused=device.type in ("cpu", "cuda"))


def backbone_factor(config: ResolvedOptim, fraction: float) -> float:
    """Factor of the backbone's rate: 0 while it is frozen, then up to 1 in as long as the warm-up takes."""
    frozen = config.freeze_fraction
    if not frozen:
        return 1.0
    return min(1.0, max(0.0, fraction - frozen) / max(1e-9, config.warmup_fraction))


def set_rates(optimizer: torch.optim.Optimizer, lr: float, decay: float, backbone: float = 1.0) -> None:
    """backbone   factor for everything that is not new"""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"] * (1.0 if group["new"] else backbone)
        group["weight_decay"] = decay if group["decay"] else 0.0


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most ``limit`` (0: only measure). Returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit > 0:
        nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], limit, norm)
    return norm
