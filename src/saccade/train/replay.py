"""Run a skipped step again: which images, which values, which precision made it non-finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from saccade import runtime
from saccade.augment.views import make_views
from saccade.base import run_folder
from saccade.base.contracts import Progress, View
from saccade.data.cache.image_cache import batch_indices
from saccade.errors import UsageError
from saccade.train import checkpoint
from saccade.train.loop import Quiet
from saccade.train.prepare import make_method, make_plan, reopen
from saccade.train.run_config import load_config


def replay(run: Path) -> dict[str, Any]:
    """Run the last step of skipped.jsonl again with the weights it had, in the run's precision and in float32.

    Returns the step, the images whose pixels or vectors are not finite, and loss and gradient norm by precision.
    Raises UsageError where no step was skipped.
    """
    run_folder.require_run(run)
    skipped = run / "skipped.jsonl"
    state = checkpoint.load_named(run, checkpoint.SKIPPED)
    if not skipped.exists() or state is None:
        raise UsageError("this run has skipped no step", got=run, expected="skipped.jsonl and checkpoints/skipped")
    settings = load_config(run)
    train = settings.train
    device = runtime.pick_device(train.device)
    split = reopen(settings, Quiet())
    plan = make_plan(run, settings, split.train, device)
    method = make_method(settings, device, load_weights=False)
    step, images = int(state["step"]), train.images_per_step
    indices = batch_indices(len(split.train), step, images, train.seed)
    epochs = [count * images / len(split.train) for count in (step, train.steps)]
    progress = Progress(step, train.steps, epochs[0], epochs[1], state.get("fraction"))
    names = [split.train.records[int(i)].id for i in indices]
    batch = split.train.batch(indices)
    views = make_views(batch, plan.views, plan.spec, seed=train.seed, step=step, device=device)
    report: dict[str, Any] = {"step": step, "images": len(names), "bad_pixels": _bad_pixels(views, names)}
    for precision in dict.fromkeys((str(train.precision), "fp32")):
        # Afresh: running statistics take in what they see, numbers or not.
        method.load_state_dict(state["method"])
        method.zero_grad()
        bad = _bad_vectors(method.backbone, views[0], names, device, precision)
        with runtime.autocast(device, precision):
            output = method.step(views, progress)
        output.loss.backward()
        gradients = [p.grad for _, p in method.parameters_to_train() if p.grad is not None]
        report[precision] = {
            "loss": float(output.loss.detach()),
            "grad_norm": float(torch.nn.utils.get_total_norm(gradients)),
            "bad_vectors": bad,
        }
    return report


def _bad_pixels(views: list[View], names: list[str]) -> list[str]:
    bad = torch.stack([~torch.isfinite(view.pixels).flatten(1).all(dim=1) for view in views]).any(dim=0)
    return [name for name, is_bad in zip(names, bad.tolist()) if is_bad]


@torch.no_grad()
def _bad_vectors(network: Any, view: View, names: list[str], device: torch.device, precision: str) -> list[str]:
    was_training = network.training
    network.eval()  # each image by itself
    with runtime.autocast(device, precision):
        bad = ~torch.isfinite(network(view.pixels).cls).all(dim=1)
    network.train(was_training)
    return [name for name, is_bad in zip(names, bad.tolist()) if is_bad]


def to_text(report: dict[str, Any]) -> str:
    """What the replay shows, and what to do about it."""
    lines = [f"step {report['step']} again, {report['images']} images"]
    precisions = [key for key in report if key in ("bf16", "fp32")]
    broken = {}
    for precision in precisions:
        loss, norm = report[precision]["loss"], report[precision]["grad_norm"]
        lines.append(f"  {precision}: loss {loss:g}, gradient {norm:g}")
        broken[precision] = not (math.isfinite(loss) and math.isfinite(norm))
    if report["bad_pixels"]:
        names = ", ".join(report["bad_pixels"][:5])
        lines.append(f"  cause: pixels that are not finite in {names}; repair or remove these images")
    elif broken.get("bf16") and not broken["fp32"]:
        lines.append("  cause: the precision; continue with --resume --set train.precision=fp32")
    elif broken["fp32"]:
        lines.append("  cause: the weights or the loss; continue from a checkpoint with --resume and a lower optim.lr")
    else:
        lines.append("  the step is finite now: its batch alone is not the cause")
    return "\n".join(lines)
