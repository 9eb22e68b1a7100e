"""Anatomy in the patch tokens of a 3D model trained without labels: anterior and posterior hippocampus, background.

    python benchmarks/volumes.py msd-hippocampus-130.zip --out DIR [--method mae] [--steps 200] [--json] [--smoke]

Cases are split once; pretraining sees those of the training part only, without masks. A patch has the class that fills
most of it. Two measures on the tokens of the test cases: accuracy of a k-NN among the training cases' tokens, and the
Jaccard index of clusters (k-means on training tokens, named by the training masks); for the trained network, for the
same one with random weights, for the voxels of the patch, and for its position alone. The last line is one JSON object:
balanced k-NN accuracy of the trained network (``ours``) and of random weights (``peer``), their ``ratio``, everything.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import balanced_accuracy_score

import harness
from saccade.api import pretrain
from saccade.augment.cubes import full_cubes, sample_cubes
from saccade.augment.views import plain_view
from saccade.augment.volume_views import spacing_of
from saccade.base.random import numpy_generator
from saccade.data.cache.image_cache import build_cache
from saccade.data.open import open_source
from saccade.data.volumes.intensity import intensity_of
from saccade.evaluation.knn import knn_scores
from saccade.evaluation.metrics import interval
from saccade.methods.mae import patchify
from saccade.models.backbones.build import rebuild
from saccade.models.backbones.weights import load_model

CLASSES = ("background", "anterior", "posterior")
CLUSTERS, K, TEST_FRACTION = 256, 20, 0.25
SMOKE = {"out": harness.TEMPORARY, "size": 16, "steps": 1, "batch": 2}


def manifest(data: Path, out: Path, seed: int) -> Path:
    """A table that puts a quarter of the cases apart."""
    names = [record.id for record in open_source(data).records]
    test = set(numpy_generator(seed, "cases").permutation(len(names))[: round(TEST_FRACTION * len(names))].tolist())
    path = out / "cases.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split"])
        writer.writerows([name, "test" if i in test else "train"] for i, name in enumerate(names))
    return path


def smoke_volumes(folder: Path) -> Path:
    """Twelve synthetic volumes with masks of three classes, as files."""
    import nibabel

    source = open_source("synthetic:volume?n=12&size=24&groups=12")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(len(source)):
        sample = source.read(index)
        assert sample.mask is not None
        for name, values in (("imagesTr", sample.pixels[0].astype(np.int32)), ("labelsTr", sample.mask)):
            nibabel.Nifti1Image(values, np.eye(4)).to_filename(folder / name / f"case-{index:02d}.nii.gz")
    return folder


def patch_classes(source: Any, index: int, cache: Any, spec: Any, patch: int) -> np.ndarray:
    """[N] class that fills most of each patch; -1 where most of the patch lies outside the volume."""
    mask = torch.from_numpy(source.read(index).mask.astype(np.int64))
    batch = cache.batch(np.array([index]))
    cube = full_cubes(batch.sizes_px, spacing_of(batch), spec.size_mm)
    spacing = spacing_of(batch)[0] * batch.sizes_px[0] / torch.tensor(mask.shape)
    layers = torch.stack([mask == c for c in range(3)]).float()
    shares = patchify(sample_cubes(layers, spacing, cube, spec.size_px), patch)
    shares = shares.unflatten(2, (-1, 3)).mean(dim=2)[0]
    majority = shares.argmax(dim=1)
    majority[shares.sum(dim=1) < 0.5] = -1
    return majority.numpy()


def patch_features(source: Any, model: Any, network: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Features of every patch by kind, its class, and its case."""
    spec, patch = model.spec, model.backbone.settings.patch
    cache = build_cache(source, cache_px=spec.size_px, channels=1, intensity=intensity_of(spec), size_mm=spec.size_mm)
    features: dict[str, list[np.ndarray]] = {"trained": [], "random weights": [], "voxels": [], "position": []}
    classes, cases = [], []
    for index in range(len(cache)):
        with torch.inference_mode():
            pixels = plain_view(cache.batch(np.array([index])), spec)
            answer = model.backbone(pixels)
            features["trained"].append(answer.tokens[0].numpy())
            features["random weights"].append(network(pixels).tokens[0].numpy())
        voxels = patchify(pixels, patch)[0].numpy()
        features["voxels"].append(np.concatenate([voxels, np.ones((len(voxels), 1), np.float32)], axis=1))
        position = np.stack(np.unravel_index(np.arange(len(voxels)), answer.grid), axis=1) / answer.grid[0] - 0.5
        features["position"].append(
            np.concatenate([position, np.full((len(position), 1), 0.5)], axis=1).astype(np.float32)
        )
        classes.append(patch_classes(source, index, cache, spec, patch))
        cases.append(np.full(len(voxels), index))
    inside = np.concatenate(classes) >= 0
    return (
        {name: np.concatenate(rows)[inside] for name, rows in features.items()},
        np.concatenate(classes)[inside],
        np.concatenate(cases)[inside],
    )


def named_clusters(x: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Class of the test patches by their cluster.

    A cluster counts as hippocampus where the fraction of hippocampus among its training patches is above a threshold,
    which maximises the Jaccard index on the training cases; it is anterior or posterior by majority.
    """
    chosen = numpy_generator(seed, "clustered").permutation(train)[:30000]
    clusters = MiniBatchKMeans(CLUSTERS, random_state=seed, n_init=3, batch_size=4096).fit(x[chosen])
    votes = np.zeros((CLUSTERS, 3))
    np.add.at(votes, (clusters.predict(x[train]), classes[train]), 1)
    inside = votes[:, 1:].sum(axis=1)
    fraction = inside / np.maximum(1, votes.sum(axis=1))
    order = np.argsort(-fraction)
    both, either = np.cumsum(inside[order]), inside.sum() + np.cumsum(votes[order, 0])
    positive = order[: int(np.argmax(both / either)) + 1]
    names = np.zeros(CLUSTERS, int)
    names[positive] = 1 + votes[positive, 1:].argmax(axis=1)
    predicted: np.ndarray = names[clusters.predict(x[test])]
    return predicted


def score(
    x: np.ndarray, classes: np.ndarray, cases: np.ndarray, is_test: np.ndarray, seed: int
) -> dict[str, list[float]]:
    """Figures on the test cases, each with a 95 % interval over cases."""
    random = numpy_generator(seed, "patches")
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    x = (x - x[train].mean(axis=0)) / np.maximum(x[train].std(axis=0), 1e-6)
    voters = np.concatenate(
        [
            random.permutation(rows)[:4000]  # of every class, so that the most frequent does not answer for all
            for c in range(3)
            for rows in [train[classes[train] == c]]
        ]
    )
    answers = knn_scores(x[voters], classes[voters], x[test], K, 3).argmax(axis=1)
    clustered = named_clusters(x, classes, train, test, seed)
    figures: dict[str, list[float]] = {}
    units, where = np.unique(cases[test], return_inverse=True)
    draws = numpy_generator(seed, "bootstrap").integers(0, len(units), (200, len(units)))

    def figure(name: str, measure: Callable[[np.ndarray], float]) -> None:
        rows = [np.flatnonzero(where == unit) for unit in range(len(units))]
        mean = measure(np.arange(len(test)))
        low, high = interval(
            mean, np.array([measure(np.concatenate([rows[u] for u in draw])) for draw in draws]), len(units)
        )
        figures[name] = [round(100 * float(v), 1) for v in (mean, low, high)]

    truth = classes[test]
    figure("k-NN balanced accuracy", lambda rows: balanced_accuracy_score(truth[rows], answers[rows]))

    def overlap(rows: np.ndarray, labels: tuple[int, ...]) -> float:
        a, b = np.isin(clustered[rows], labels), np.isin(truth[rows], labels)
        return float((a & b).sum() / max(1, (a | b).sum()))

    figure("clusters, Jaccard hippocampus", lambda rows: overlap(rows, (1, 2)))
    figure("clusters, Jaccard anterior", lambda rows: overlap(rows, (1,)))
    figure("clusters, Jaccard posterior", lambda rows: overlap(rows, (2,)))
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", default="mae")
    parser.add_argument("--backbone", default="vit_micro_patch4")
    parser.add_argument("--size", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options = harness.parse(parser, SMOKE, argv, required=("data", "out"))
    if options.smoke:
        options.data = smoke_volumes(options.out / "volumes")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    run, table = options.out / "run", manifest(options.data, options.out, options.seed)
    began = time.process_time()
    if not (run / "model").exists():
        from saccade.base.config import split_pair

        settings = {
            "data.manifest": str(table),
            "model.size_px": options.size,
            "train.steps": options.steps,
            "train.batch": options.batch,
            "train.evaluate_every": options.steps,
            "train.seed": options.seed,
        } | dict(split_pair(pair) for pair in options.settings)
        pretrain(options.data, out=run, method=options.method, backbone=options.backbone, settings=settings)
    spent = time.process_time() - began
    source, model = open_source(options.data, manifest=table), load_model(run)
    network = rebuild(model.backbone, seed=options.seed + 1).eval()
    features, classes, cases = patch_features(source, model, network)
    test = np.isin(cases, [i for i, record in enumerate(source.records) if record.split == "test"])
    result: dict[str, Any] = {
        "patches": {name: int((classes[test] == c).sum()) for c, name in enumerate(CLASSES)},
        "cpu_seconds_of_pretraining": round(spent),
        "peak_gib": round(harness.peak_mib() / 2**10, 2),
        "scores": {name: score(x, classes, cases, test, options.seed) for name, x in features.items()},
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=1))
    lines = [
        "  ".join([f"{name:15s}", *(f"{key}: {v[0]} [{v[1]}, {v[2]}]" for key, v in scores.items())])
        for name, scores in result["scores"].items()
    ]
    ours, peer = (result["scores"][name]["k-NN balanced accuracy"][0] for name in ("trained", "random weights"))
    harness.finish(options, {"ours": ours, "peer": peer, "ratio": round(ours / max(peer, 1e-9), 3)} | result, lines)


if __name__ == "__main__":
    main()
