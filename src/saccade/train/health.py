"""The health of a run while it goes: effective rank, and losses that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.base.files import write_text
from saccade.base.run_folder import read_metrics
from saccade.errors import NonFiniteLoss

APART = 100


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


class Skips:
    """Steps that were skipped because a value was not finite, with the images of their batch: skipped.jsonl.

    A single such step does not end a run: bf16 and a rare batch can cause it. A second one within APART steps does.
    Records from step ``start`` on are removed, because those steps are trained again.
    """

    def __init__(self, run: Path, start: int, *, write: bool):
        self.path, self.write = run / "skipped.jsonl", write
        lines = read_metrics(self.path) if self.path.exists() else []
        earlier = [line for line in lines if line["step"] < start]
        if write and len(earlier) < len(lines):
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in earlier))
        self.steps = [line["step"] for line in earlier]

    def record(self, step: int, images: list[str], logs: dict[str, float], *, last_good: int | None) -> str:
        """Record a step; returns the message. Raises NonFiniteLoss where another was skipped shortly before."""
        if self.steps and step - self.steps[-1] < APART:
            require_finite(math.nan, step=step, logs=logs, last_good=last_good)
        self.steps.append(step)
        bad = [name for name, value in logs.items() if not math.isfinite(value)]
        message = f"skipped step {step}: {', '.join(bad)} not finite."
        try:
            if self.write:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "not_finite": bad, "images": images}) + "\n")
        except OSError as error:
            return f"{message} {self.path} cannot be written ({error.strerror}); training goes on"
        return (
            f"{message} Its {len(images)} images are in {self.path}; "
            f"saccade doctor {self.path.parent} --replay looks for the cause"
        )
