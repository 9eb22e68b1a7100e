"""k-NN against wall-clock: saccade beside lightly, at the same time, on a core of its own each.

    python benchmarks/time_to_accuracy.py DATA [--minutes 12] [--backbone resnet10_w32] [--tuned] [--json]
        [--smoke]

Same network (saccade's, for both), same images, same number, sizes and scales of crops, batch 64, one thread.
lightly has the recipe of its published CIFAR-10 benchmark (SGD, batch norm in the head, K = 2,048, momentum 0.99,
a cosine over the run, its own strengths of colour and blur) or AdamW for a ViT, in fp32 as it ships, and takes
decoded images from memory. With ``--tuned`` it gets the settings that saccade decides on (AdamW and its learning
rate, head and K, teacher temperature, strengths of the views). It trains for ``--minutes``; saccade, with its own
defaults, for half of that, twice (two seeds). Evaluation, decoding and start-up do not count. All are measured on
the same images of the training part, whole groups apart: 3,000 vote, 1,500 are asked (k = 20, of fewer two thirds
and one third); lightly's student or teacher, whichever is better.

The last line is one JSON object: minutes of the whole run of the ``peer``, whose final value is the mean of its last
three; minutes of ``ours`` to reach and keep that value (mean over the seeds; null where one does not); their
``ratio``; all curves.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import harness
import peer
from saccade import api
from saccade.base.config import override
from saccade.base.random import numpy_generator
from saccade.base.run_folder import read_metrics
from saccade.data.cache.image_cache import ImageCache, build_cache, input_spec
from saccade.data.splits import grouped_split
from saccade.evaluation.knn import knn_scores
from saccade.features.embed_images import embed_cached
from saccade.methods.dino import DinoConfig
from saccade.models.backbones.build import build
from saccade.models.registry import parse
from saccade.tasks.plan import resolve_assumed
from saccade.train import checkpoint
from saccade.train.data_selection import open_subset
from saccade.train.recipes import apply_recipe
from saccade.train.run_config import RunConfig, default_config

BATCH, OUT_DIM, EVALUATIONS, ASKED_AND_VOTING = 64, 2048, 12, 4500
CPU = torch.device("cpu")
SMOKE = {"data": "synthetic:tissue?n=160&size=32", "minutes": 0.01, "backbone": "resnet10_w8", "size": 32}
Curve = list[tuple[float, float]]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of both tools."""
    patch = 8 if options.size > 32 else 4
    chosen: dict[str, Any] = {
        "model.backbone": options.backbone,
        "model.size_px": options.size,
        "views.local_px": math.ceil(options.size * 96 / 224 / patch) * patch,
        "views.local_count": options.local_count,
        "train.batch": BATCH,
    }
    return chosen | ({"data.group": options.group} if options.group else {})


def config_of(options: argparse.Namespace) -> RunConfig:
    run = apply_recipe(default_config("dino"), options.recipe)
    return override(run, {"data.source": options.data} | settings_of(options))


class Probe:
    """k-NN of a network on a fixed sample of the images, the same for everyone."""

    def __init__(self, options: argparse.Namespace):
        self.run = config_of(options)
        self.cache = build_cache(open_subset(self.run.data, "").source, cache_px=round(1.5 * options.size))
        self.spec = input_spec(self.cache, options.size, grey=self.run.data.grey)
        self.chosen = np.sort(numpy_generator(0, "probe").permutation(len(self.cache))[:ASKED_AND_VOTING])
        records = [self.cache.records[int(i)] for i in self.chosen]
        names = sorted({str(r.label) for r in records})
        self.labels = np.array([names.index(str(r.label)) for r in records])
        self.train, self.test = grouped_split(records, 1 / 3, 0)

    def __call__(self, network: nn.Module) -> float:
        x = embed_cached(network, self.cache, self.chosen, self.spec, device=CPU, precision="fp32")
        scores = knn_scores(x[self.train], self.labels[self.train], x[self.test], 20, int(self.labels.max()) + 1)
        return float((scores.argmax(axis=1) == self.labels[self.test]).mean())


# --- ours ---------------------------------------------------------------------------------------


def train_ours(options: argparse.Namespace, seed: int) -> Curve:
    """k-NN by seconds of training, from the checkpoints of a run that lasts half of the peer's time."""
    probe = Probe(options)
    network = build(options.backbone, channels=3, size_px=options.size, seed=seed)
    curve = [(0.0, probe(network))]
    with tempfile.TemporaryDirectory() as folder:
        run = api.pretrain(
            options.data,
            out=Path(folder) / "run",
            method="dino",
            recipe=options.recipe,
            settings=settings_of(options)
            | {"train.seed": seed, "train.minutes": options.minutes / 2, "train.keep": 1000, "train.log_every": 1},
        )
        seconds = {line["step"]: line["seconds"] for line in read_metrics(run / "metrics.jsonl")}
        for step in checkpoint.available(run):
            state = torch.load(checkpoint.folder_of(run, step) / checkpoint.FILE, weights_only=True)["method"]
            parts = {k.removeprefix("teacher."): v for k, v in state.items() if k.startswith("teacher.")}
            network.load_state_dict(parts)
            curve.append((seconds[step - 1], probe(network)))
    return curve


# --- the peer -----------------------------------------------------------------------------------


class Decoded(Dataset):
    """Decoded images as PIL, in colour or grey, through lightly's transform."""

    def __init__(self, cache: ImageCache, grey: bool, transform: Any):
        arrays = [cache.image(i).transpose(1, 2, 0).squeeze() for i in range(len(cache))]
        images = [Image.fromarray(a) for a in arrays]
        self.images = [(i.convert("L") if grey else i).convert("RGB") for i in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(self.images[index])


class Vectors(nn.Module):
    """saccade's network as lightly calls one: images to vectors."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).cls


def as_shipped(options: argparse.Namespace, run: RunConfig, images: int) -> tuple[peer.LightlyDino, dict[str, Any]]:
    """lightly's own recipe, and nothing to add to its transform."""
    network = build(options.backbone, channels=3, size_px=options.size, seed=0)
    if parse(options.backbone).capabilities.transformer:
        return peer.LightlyDino(Vectors(network), network.dim, OUT_DIM), {}
    optimizer = functools.partial(peer.sgd, batch=BATCH)
    return peer.LightlyDino(Vectors(network), network.dim, OUT_DIM, batch_norm=True, optimizer=optimizer), {}


def tuned(options: argparse.Namespace, run: RunConfig, images: int) -> tuple[peer.LightlyDino, dict[str, Any]]:
    """The settings that saccade decides on for this data and a short run, in lightly's words."""
    chosen = {"train.steps": 1000, "data.cache_px": round(1.5 * options.size)}
    resolved = resolve_assumed(override(run, chosen), images, 3, CPU)
    head, views = resolved.method, resolved.views
    assert isinstance(head, DinoConfig) and head.out_dim and head.head_hidden and head.bottleneck
    network = build(options.backbone, channels=3, size_px=options.size, seed=0)
    model = peer.LightlyDino(
        Vectors(network),
        network.dim,
        head.out_dim,
        batch_norm=head.head_norm == "batch",
        sizes=(head.head_hidden, head.bottleneck),
        teacher_temp=head.teacher_temp,
        optimizer=functools.partial(torch.optim.AdamW, lr=resolved.optim.lr, weight_decay=0.04),
    )
    strengths = {"bright": views.brightness, "contrast": views.contrast, "sat": views.saturation, "hue": views.hue}
    others = {
        **{f"cj_{name}": value for name, value in strengths.items()},
        "cj_strength": 1.0,
        "random_gray_scale": views.grey_prob,
        "gaussian_blur": views.blur_prob,
        "solarization_prob": views.solarise_prob,
        "hf_prob": 0.5 * views.hflip,
        "vf_prob": 0.5 * views.vflip,
        "rr_prob": 0.5 * views.turn90,
    }
    return model, others


def train_peer(options: argparse.Namespace) -> Curve:
    """k-NN by seconds of training."""
    torch.manual_seed(0)
    probe = Probe(options)
    run, cache, spec = probe.run, probe.cache, probe.spec
    views = run.views
    scales = {"global_crop_scale": views.global_scale, "local_crop_scale": views.local_scale}
    model, others = (tuned if options.tuned else as_shipped)(options, run, len(cache))
    momentum = 0.996 if parse(options.backbone).capabilities.transformer and not options.tuned else 0.99
    peak = model.optimizer.param_groups[0]["lr"]
    transform = peer.transform(
        options.size,
        settings_of(options)["views.local_px"],
        options.local_count,
        normalize={"mean": list(spec.mean), "std": list(spec.std)},
        **scales,
        **others,
    )
    loader = DataLoader(Decoded(cache, spec.grey, transform), batch_size=BATCH, shuffle=True, drop_last=True)
    limit, spent, epoch = options.minutes * 60, 0.0, 0
    networks = [part.get_submodule("network") for part in (model.student, model.teacher)]
    curve: Curve = [(0.0, probe(networks[0]))]
    while spent < limit:
        mark = time.perf_counter()
        for views_of_batch in loader:
            fraction = min(1.0, spent / limit)
            model.optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * fraction))
            model.step(views_of_batch[:2], views_of_batch[2:], momentum=momentum, epoch=epoch)
            spent, mark = spent + time.perf_counter() - mark, time.perf_counter()
            if spent >= len(curve) * limit / EVALUATIONS:
                curve.append((spent, max(probe(network) for network in networks)))
                mark = time.perf_counter()
            if spent >= limit:
                break
        epoch += 1
    return curve


# --- side by side -------------------------------------------------------------------------------


def curves_of(tool: str, options: argparse.Namespace) -> dict[str, Curve]:
    """All curves of one tool, on one thread."""
    torch.set_num_threads(1)
    if tool == "peer":
        return {"peer": train_peer(options)}
    return {f"ours, seed {seed}": train_ours(options, seed) for seed in range(1 if options.smoke else 2)}


def seconds_to(curve: Curve, value: float) -> float | None:
    """When a curve reaches a value and, in the mean of what follows, keeps it."""
    for number, (seconds, knn) in enumerate(curve):
        if knn >= value and statistics.mean(later for _, later in curve[number:]) >= value:
            return seconds
    return None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--backbone", default="resnet10_w32")
    parser.add_argument("--recipe", default="short")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--local-count", type=int, default=2)
    parser.add_argument("--group", default="", help="column with the patient or source tile")
    parser.add_argument("--tuned", action="store_true", help="give lightly the settings that saccade decides on")
    options = harness.parse(parser, SMOKE, argv, required=("data",))
    tools = harness.side_by_side({tool: functools.partial(curves_of, tool, options) for tool in ("ours", "peer")})
    curves = tools["ours"] | tools["peer"]
    theirs = curves.pop("peer")
    final = statistics.mean(knn for _, knn in theirs[-3:])
    reached = [seconds_to(curve, final) for curve in curves.values()]
    peer_seconds = theirs[-1][0]
    ours = None if None in reached else statistics.mean(s for s in reached if s is not None)
    lines = [
        f"{name:14s} " + " ".join(f"{s / 60:.1f}:{100 * knn:.1f}" for s, knn in curve)
        for name, curve in {**curves, "lightly": theirs}.items()
    ]
    result = {
        "ours": ours and round(ours / 60, 4),
        "peer": round(peer_seconds / 60, 4),
        "ratio": round(peer_seconds / ours, 2) if ours else None,
        "knn": round(final, 4),
        "data": Path(options.data).name,
        "backbone": options.backbone,
        "recipe": options.recipe,
        "tuned": options.tuned,
        "curves": {**curves, "peer": theirs},
    }
    harness.finish(options, result, lines)


if __name__ == "__main__":
    main()
