"""AdamW (Loshchilov and Hutter 2019) with the schedules of DINO (Caron et al. 2021, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import nn

from saccade.methods.base import Method
from saccade.train.settings import OptimConfig


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from ``start`` (fraction 0) to ``end`` (fraction 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def learning_rate(config: OptimConfig, fraction: float) -> float:
    """Linear warm-up, then a cosine down to ``lr_end``; ``fraction`` of the run done, 0..1."""
    assert config.lr is not None and config.warmup_fraction is not None
    if fraction < config.warmup_fraction:
        return config.lr * fraction / config.warmup_fraction
    rest = (fraction - config.warmup_fraction) / max(1e-9, 1 - config.warmup_fraction)
    return cosine(config.lr, config.lr_end, rest)


def weight_decay(config: OptimConfig, fraction: float) -> float:
    return cosine(config.weight_decay, config.weight_decay_end, fraction)


def make_optimizer(method: Method, device: torch.device) -> torch.optim.AdamW:
    """Groups by factor of the learning rate: matrices with weight decay; biases, norms and other vectors without."""
    named = [(name, p) for name, p in method.trainable() if p.requires_grad]
    rates = {name: method.rate(name) for name, _ in named}
    groups = [
        {"params": [p for name, p in named if rates[name] == rate and (p.ndim > 1) == matrix]}
        | {"decay": matrix, "rate": rate}
        for rate in sorted(set(rates.values()), reverse=True)
        for matrix in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=device.type in ("cpu", "cuda"))


def set_rates(optimizer: torch.optim.Optimizer, lr: float, decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]
        group["weight_decay"] = decay if group["decay"] else 0.0


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most ``limit`` (0: only measure). Returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit > 0:
        nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], limit, norm)
    return norm
