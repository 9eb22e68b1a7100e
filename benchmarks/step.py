"""One DINO step on the CPU: saccade against lightly, forward, backward, update, teacher; views are made beforehand.

    python benchmarks/step.py [--model tiny|small] [--rounds 5] [--peer-bf16] [--json] [--smoke]

tiny: ViT-Ti/8, 64 and 32 px, 2 + 8 crops, batch 64, K = 4,096. small: ViT-S/16, 224 and 96 px, batch 8.
The last line is one JSON object: images a second of ours and peer, and their ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

import harness
from harness import Work
from peer import BOTTLENECK, HIDDEN, VIT, LightlyDino, timm_vit
from saccade import runtime
from saccade.base.contracts import Progress, Role, View
from saccade.methods.base import DatasetFacts
from saccade.methods.dino import Dino, DinoConfig, resolve_dino
from saccade.models.backbones.build import build
from saccade.train.optim import clip_gradients, make_optimizer
from saccade.train.settings import ResolvedOptim

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What is measured; both tools get the same."""

    size: str
    patch: int
    global_px: int
    local_px: int
    batch: int
    out_dim: int = 4096
    local_count: int = 8


SETTINGS = {
    "tiny": Setting("tiny", 8, 64, 32, 64),
    "small": Setting("small", 16, 224, 96, 8),
    "smoke": Setting("tiny", 8, 32, 16, 2, out_dim=64, local_count=2),
}


def random_views(setting: Setting) -> list[View]:
    """Two global and the local views of one batch, of noise: the time does not depend on what they show."""
    views = []
    roles: list[tuple[Role, int, int]] = [
        ("global", 2, setting.global_px),
        ("local", setting.local_count, setting.local_px),
    ]
    for role, count, side in roles:
        for _ in range(count):
            views.append(View(role, torch.randn(setting.batch, 3, side, side), torch.zeros(setting.batch, 4)))
    return views


class Ours:
    """saccade's step as the training loop takes it."""

    def __init__(self, setting: Setting, precision: str):
        name = f"vit_{setting.size}_patch{setting.patch}"
        student, teacher = (build(name, channels=3, size_px=setting.global_px, seed=0) for _ in range(2))
        options = DinoConfig(out_dim=setting.out_dim, head_hidden=HIDDEN, bottleneck=BOTTLENECK)
        config = resolve_dino(options, DatasetFacts(images=100_000, batch=setting.batch, steps=100_000))
        self.method = Dino(student, teacher, config, seed=0)
        self.optimizer = make_optimizer(
            self.method, ResolvedOptim(lr=5e-4, warmup_fraction=0.1, layer_decay=1.0, freeze_fraction=0.0), CPU
        )
        self.precision, self.progress = precision, Progress(1000, 100_000, 1.0, 100.0)

    def step(self, views: list[View]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        with runtime.autocast(CPU, self.precision):
            output = self.method.step(views, self.progress)
        output.loss.backward()
        self.method.before_update(self.progress)
        clip_gradients([p for _, p in self.method.parameters_to_train()], 3.0)
        self.optimizer.step()
        self.method.after_update(self.progress)
        return float(output.loss.detach())


def set_up_ours(setting: Setting, precision: str) -> Work:
    runtime.keep_freed_memory()  # as saccade pretrain does
    ours, views = Ours(setting, precision), random_views(setting)

    def work() -> int:
        ours.step(views)
        return setting.batch

    return work


def set_up_peer(setting: Setting, bf16: bool) -> Work:
    network = timm_vit(setting.size, setting.patch, setting.global_px)
    peer = LightlyDino(network, VIT[setting.size][0], setting.out_dim, bf16=bf16)
    views = random_views(setting)
    global_views = [v.pixels for v in views if v.role == "global"]
    local_views = [v.pixels for v in views if v.role == "local"]

    def work() -> int:
        peer.step(global_views, local_views)
        return setting.batch

    return work


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SETTINGS), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-bf16", action="store_true", help="run lightly under the same autocast")
    options = harness.parse(parser, {"rounds": 1, "model": "smoke"}, argv)
    setting = SETTINGS[options.model]
    precision = runtime.usual_precision(CPU)
    mine, theirs = harness.abab(
        partial(set_up_ours, setting, precision), partial(set_up_peer, setting, options.peer_bf16), options.rounds
    )
    result = {
        "ours": round(mine, 2),
        "peer": round(theirs, 2),
        "ratio": round(mine / theirs, 3),
        "model": options.model,
        "precision": precision,
        "peer_bf16": options.peer_bf16,
        "threads": torch.get_num_threads(),
    }
    text = f"saccade {mine:.1f} images/s ({precision}), lightly {theirs:.1f}: {mine / theirs:.2f} times"
    harness.finish(options, result, [text])


if __name__ == "__main__":
    main()
