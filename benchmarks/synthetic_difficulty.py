"""How hard is synthetic:tissue? k-NN on pixels and colour against a supervised ResNet-18, split by patient.

    python benchmarks/synthetic_difficulty.py [--count 5600] [--minutes 6] [--json] [--smoke]

The last line is one JSON object with the accuracies on the test patients: of the network (``ours``), of the best
baseline (``peer``), and of all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

import harness
from saccade.augment.views import plain_view
from saccade.data.cache.image_cache import batch_indices, input_spec
from saccade.data.synthetic.images import CLASSES, TissueSource
from saccade.evaluation.knn import knn_scores
from saccade.features.embed_images import Decoded, embed_baselines
from saccade.models.backbones.build import build


def baselines(decoded: Decoded, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """k-NN (k = 20) on pixels and on the colour histogram, as they are and with the training mean subtracted."""
    accuracies = {}
    for name, table in embed_baselines(decoded, 64, grey=False).items():
        mean = table.features[train].mean(axis=0)
        for kind, features in ((name, table.features), (f"{name}, centred", table.features - mean)):
            scores = knn_scores(features[train], labels[train], features[test], 20, len(CLASSES))
            accuracies[kind] = float((scores.argmax(axis=1) == labels[test]).mean())
    return accuracies


def supervised(decoded: Decoded, labels: np.ndarray, train: np.ndarray, test: np.ndarray, minutes: float) -> float:
    """A ResNet-18 from scratch with flips and quarter turns, learning rate falling to zero over ``minutes``."""
    cache = decoded.at(64)
    pixels = plain_view(cache.batch(np.arange(len(cache))), input_spec(cache, 64, grey=False))
    truth = torch.from_numpy(labels)
    network = build("resnet18", size_px=64).to(memory_format=torch.channels_last)
    head = torch.nn.Linear(network.dim, len(CLASSES))
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], weight_decay=0.05, fused=True)
    began, step = time.monotonic(), 0
    while (done := (time.monotonic() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, done / 0.05) * (1 - done)
        chosen = train[batch_indices(len(train), step, 64, seed=0)]
        x = torch.rot90(pixels[chosen], step % 4, (2, 3))
        x = (x.flip(2) if step % 8 > 3 else x).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(network(x).cls)
        loss = F.cross_entropy(logits.float(), truth[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    network.eval()
    with torch.no_grad():
        answers = torch.cat([head(network(pixels[part]).cls).argmax(dim=1) for part in np.array_split(test, 20)])
    return float((answers.numpy() == labels[test]).mean())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5600)
    parser.add_argument("--minutes", type=float, default=6.0)
    options = harness.parse(parser, {"count": 160, "minutes": 0.002}, argv)
    decoded = Decoded(TissueSource(options.count), max_bad=0.0, report=None)
    records = decoded.at(64).records
    labels = np.array([CLASSES.index(str(r.label)) for r in records])
    train = np.flatnonzero([r.split == "train" for r in records])
    test = np.flatnonzero([r.split == "test" for r in records])
    accuracies = baselines(decoded, labels, train, test)
    accuracies["supervised resnet18"] = supervised(decoded, labels, train, test, options.minutes)
    ours, peer = accuracies["supervised resnet18"], max(v for n, v in accuracies.items() if "supervised" not in n)
    result = {"ours": ours, "peer": peer, "ratio": round(ours / max(peer, 1e-9), 3)}
    result |= {"train": len(train), "test": len(test), "minutes": options.minutes} | accuracies
    harness.finish(options, result, [f"{name:28s} {100 * value:5.1f} %" for name, value in accuracies.items()])


if __name__ == "__main__":
    main()
