"""What every method must keep to, on a real network: it learns, names what does not suit, and is the same on two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from method_steps import made, steps_of_all, views
from saccade.base.contracts import Progress
from saccade.errors import UsageError
from saccade.methods.base import DatasetFacts
from saccade.methods.registry import build_method, card_of, method_names, resolve_method
from saccade.models.backbones.build import build

SCRIPT = Path(__file__).parents[1] / "support" / "method_steps.py"
SELF_SUPERVISED = [name for name in method_names() if name != "supervised"]


def train(method, name: str, steps: int, lr: float = 1e-3) -> list[float]:
    optimizer, losses = torch.optim.AdamW([p for _, p in method.parameters_to_train()], lr=lr), []
    for step in range(steps):
        progress = Progress(step, 200, step, 200)
        out = method.step(views(name), progress)
        losses.append(float(out.logs.get("loss", out.loss.detach())))
        out.loss.backward()
        method.before_update(progress)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(progress)
        logs = {key: float(value) for key, value in {"loss": out.loss.detach(), **out.logs}.items()}
        assert all(torch.isfinite(torch.tensor(value)) for value in logs.values())
    return losses


def test_unknown_name_suggests():
    net = build("resnet10_w8", size_px=32)
    for call in (
        lambda: card_of("dinoo").config_cls,
        lambda: resolve_method("dinoo", None, DatasetFacts(images=1, batch=1, steps=1)),
        lambda: build_method("dinoo", net, lambda: net, None, seed=0),
    ):
        with pytest.raises(UsageError, match="did you mean 'dino'"):
            call()


@pytest.mark.parametrize("name", method_names())
def test_the_loss_falls(name):
    # Without a warm-up, rates that suit the others throw these two into one point.
    losses = train(made(name), name, 40, lr=3e-4 if name in ("moco_v3", "lejepa") else 1e-3)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5]), losses


@pytest.mark.parametrize("name", method_names())
def test_everything_that_is_state_is_in_the_state(name):
    """After loading, a method that began elsewhere goes on as this one does."""
    one, other = made(name), made(name, start=1)
    train(one, name, 3)
    other.load_state_dict(one.state_dict())
    first, second = (float(method.step(views(name), Progress(3, 200, 3, 200)).loss.detach()) for method in (one, other))
    assert first == second


@pytest.mark.parametrize("name", [name for name in method_names() if card_of(name).needs_masking])
def test_networks_that_cannot_leave_patches_out_are_refused(name):
    with pytest.raises(UsageError, match="masks patches"):
        resolve_method(name, card_of(name).config_cls(), DatasetFacts(images=64, batch=8, steps=50, maskable=False))


@pytest.mark.parametrize("name", [name for name in SELF_SUPERVISED if not card_of(name).needs_masking])
@pytest.mark.parametrize("network", ["resnet10_w8", "hybrid_micro_patch8_w32", "swin_micro_patch2_w24_window4"])
def test_others_learn_with_any_network(name, network):
    losses = train(made(name, network=network), name, 2)
    assert all(loss == loss for loss in losses)


@pytest.mark.slow
def test_two_processes_equal_one():
    """Three updates of every method, losses and weights, with the batch dealt out to two processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(SCRIPT)]
    launched = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert launched.returncode == 0, launched.stderr[-3000:]
    two = json.loads(next(line for line in launched.stdout.splitlines() if line.startswith("{")))
    for name, (loss, weight) in steps_of_all().items():
        assert two[name][0] == pytest.approx(loss, rel=2e-5), name
        assert two[name][1] == pytest.approx(weight, rel=1e-5), name
