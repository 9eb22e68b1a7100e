"""What a run says of its own health while it goes: effective rank, and losses that are no numbers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.errors import NonFiniteLoss


def effective_rank(features: Float[Tensor, "N D"]) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values; 1 to min(N, D)."""
    values = torch.linalg.svdvals(features.float())
    p = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def require_finite(loss: float, *, step: int, logs: dict[str, float], last_good: int | None) -> None:
    """Raise NonFiniteLoss with the step, the likely cause and the checkpoint to go back to."""
    if math.isfinite(loss):
        return
    bad = [name for name, value in logs.items() if not math.isfinite(value)]
    back = f"the last good checkpoint is step {last_good}" if last_good is not None else "no checkpoint was written yet"
    raise NonFiniteLoss(
        f"the loss became {loss} at step {step}; {back}",
        got="not finite: " + ", ".join(bad or ["loss"]),
        hint="go on from the checkpoint with --resume --set optim.lr=LOWER or --set train.precision=fp32",
    )
