"""What do patch tokens of an unlabelled 3D model know of anatomy? Anterior, posterior hippocampus, and neither.

    python benchmarks/volumes.py msd-hippocampus-130.zip --out DIR [--method mae] [--steps 200]

Cases are split once; pretraining sees those of the training part only, without masks. A patch has the class that fills
most of it. Two questions to the tokens of the test cases: the class by weighted k-NN among the training cases' tokens,
and the Jaccard index of clusters (k-means on training tokens, named by the training masks). Asked of the
trained network, of the same one with random weights, of the patch's own voxels, and of its place alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import balanced_accuracy_score

from saccade.api import pretrain
from saccade.augment.cubes import sample_cubes, whole_cubes
from saccade.augment.views import plain_view
from saccade.augment.volume_views import spacing_of
from saccade.base.random import numpy_generator
from saccade.data.cache.image_cache import build_cache
from saccade.data.open import open_source
from saccade.data.volumes.intensity import intensity_of
from saccade.evaluation.metrics import interval
from saccade.evaluation.probes import knn_scores
from saccade.methods.mae import patchify
from saccade.models.backbones.build import rebuild
from saccade.models.backbones.weights import load_model

CLASSES = ("background", "anterior", "posterior")
CLUSTERS, K, TEST_SHARE = 256, 20, 0.25


def manifest(data: Path, out: Path, seed: int) -> Path:
    """A table that puts a quarter of the cases apart."""
    names = [record.id for record in open_source(data).records]
    held = set(numpy_generator(seed, "cases").permutation(len(names))[: round(TEST_SHARE * len(names))].tolist())
    path = out / "cases.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split"])
        writer.writerows([name, "test" if i in held else "train"] for i, name in enumerate(names))
    return path


def patch_classes(source, index: int, cache, spec, patch: int) -> np.ndarray:
    """[N] class that fills most of each patch; -1 where most of the patch lies outside the volume."""
    mask = torch.from_numpy(source.read(index).mask.astype(np.int64))
    batch = cache.batch(np.array([index]))
    cube = whole_cubes(batch.sizes_px, spacing_of(batch), spec.size_mm)
    spacing = spacing_of(batch)[0] * batch.sizes_px[0] / torch.tensor(mask.shape)
    layers = torch.stack([mask == c for c in range(3)]).float()
    shares = patchify(sample_cubes(layers, spacing, cube, spec.size_px), patch)
    shares = shares.unflatten(2, (-1, 3)).mean(dim=2)[0]
    found = shares.argmax(dim=1)
    found[shares.sum(dim=1) < 0.5] = -1
    return found.numpy()


def look(source, model, network) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Features of every patch by kind, its class, and its case."""
    spec, patch = model.spec, model.backbone.settings.patch
    cache = build_cache(source, cache_px=spec.size_px, channels=1, intensity=intensity_of(spec), size_mm=spec.size_mm)
    features: dict[str, list[np.ndarray]] = {"trained": [], "random weights": [], "voxels": [], "place": []}
    classes, cases = [], []
    for index in range(len(cache)):
        with torch.inference_mode():
            pixels = plain_view(cache.batch(np.array([index])), spec)
            answer = model.backbone(pixels)
            features["trained"].append(answer.tokens[0].numpy())
            features["random weights"].append(network(pixels).tokens[0].numpy())
        voxels = patchify(pixels, patch)[0].numpy()
        features["voxels"].append(np.concatenate([voxels, np.ones((len(voxels), 1), np.float32)], axis=1))
        place = np.stack(np.unravel_index(np.arange(len(voxels)), answer.grid), axis=1) / answer.grid[0] - 0.5
        features["place"].append(np.concatenate([place, np.full((len(place), 1), 0.5)], axis=1).astype(np.float32))
        classes.append(patch_classes(source, index, cache, spec, patch))
        cases.append(np.full(len(voxels), index))
    seen = np.concatenate(classes) >= 0
    return (
        {name: np.concatenate(rows)[seen] for name, rows in features.items()},
        np.concatenate(classes)[seen],
        np.concatenate(cases)[seen],
    )


def named_clusters(x: np.ndarray, classes: np.ndarray, known: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """Class of the test patches by their cluster.

    A cluster is hippocampus where more than a share of its training patches is, the share that gives the best Jaccard
    index on the training cases; anterior or posterior, whichever it has more of.
    """
    chosen = numpy_generator(seed, "clustered").permutation(known)[:30000]
    clusters = MiniBatchKMeans(CLUSTERS, random_state=seed, n_init=3, batch_size=4096).fit(x[chosen])
    votes = np.zeros((CLUSTERS, 3))
    np.add.at(votes, (clusters.predict(x[known]), classes[known]), 1)
    inside = votes[:, 1:].sum(axis=1)
    share = inside / np.maximum(1, votes.sum(axis=1))
    order = np.argsort(-share)
    both, either = np.cumsum(inside[order]), inside.sum() + np.cumsum(votes[order, 0])
    kept = order[: int(np.argmax(both / either)) + 1]
    names = np.zeros(CLUSTERS, int)
    names[kept] = 1 + votes[kept, 1:].argmax(axis=1)
    found: np.ndarray = names[clusters.predict(x[asked])]
    return found


def score(x: np.ndarray, classes: np.ndarray, cases: np.ndarray, test: np.ndarray, seed: int) -> dict[str, list[float]]:
    """Figures on the test cases, each with a 95 % interval over cases."""
    random = numpy_generator(seed, "patches")
    known = np.flatnonzero(~test)
    x = (x - x[known].mean(axis=0)) / np.maximum(x[known].std(axis=0), 1e-6)  # every kind alike
    shown = np.concatenate(
        [
            random.permutation(rows)[:4000]  # of every class, so that the most frequent does not answer for all
            for c in range(3)
            for rows in [known[classes[known] == c]]
        ]
    )
    asked = np.flatnonzero(test)
    answers = knn_scores(x[shown], classes[shown], x[asked], K, 3).argmax(axis=1)
    named = named_clusters(x, classes, known, asked, seed)
    found: dict[str, list[float]] = {}
    units, where = np.unique(cases[asked], return_inverse=True)
    draws = numpy_generator(seed, "bootstrap").integers(0, len(units), (200, len(units)))

    def figure(name: str, measure) -> None:
        rows = [np.flatnonzero(where == unit) for unit in range(len(units))]
        whole = measure(np.arange(len(asked)))
        low, high = interval(np.array([measure(np.concatenate([rows[u] for u in draw])) for draw in draws]))
        found[name] = [round(100 * float(v), 1) for v in (whole, low, high)]

    truth = classes[asked]
    figure("k-NN balanced accuracy", lambda rows: balanced_accuracy_score(truth[rows], answers[rows]))

    def overlap(rows: np.ndarray, wanted: tuple[int, ...]) -> float:
        a, b = np.isin(named[rows], wanted), np.isin(truth[rows], wanted)
        return float((a & b).sum() / max(1, (a | b).sum()))

    figure("clusters, Jaccard hippocampus", lambda rows: overlap(rows, (1, 2)))
    figure("clusters, Jaccard anterior", lambda rows: overlap(rows, (1,)))
    figure("clusters, Jaccard posterior", lambda rows: overlap(rows, (2,)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="mae")
    parser.add_argument("--backbone", default="vit_micro_patch4")
    parser.add_argument("--size", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    words = parser.parse_args()
    torch.set_num_threads(1)
    words.out.mkdir(parents=True, exist_ok=True)
    run, table = words.out / "run", manifest(words.data, words.out, words.seed)
    began = time.process_time()
    if not (run / "model").exists():
        from saccade.base.config import split_pair

        settings = {
            "data.manifest": str(table),
            "model.size_px": words.size,
            "train.steps": words.steps,
            "train.batch": words.batch,
            "train.evaluate_every": words.steps,
            "train.seed": words.seed,
        } | dict(split_pair(pair) for pair in words.settings)
        pretrain(words.data, out=run, method=words.method, backbone=words.backbone, settings=settings)
    spent = time.process_time() - began
    source, model = open_source(words.data, manifest=table), load_model(run)
    network = rebuild(model.backbone, seed=words.seed + 1).eval()
    features, classes, cases = look(source, model, network)
    test = np.isin(cases, [i for i, record in enumerate(source.records) if record.split == "test"])
    result = {
        "patches": {name: int((classes[test] == c).sum()) for c, name in enumerate(CLASSES)},
        "cpu_seconds_of_pretraining": round(spent),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "scores": {name: score(x, classes, cases, test, words.seed) for name, x in features.items()},
    }
    (words.out / "result.json").write_text(json.dumps(result, indent=1))
    for name, scores in result["scores"].items():
        print(f"{name:15s}", *(f"{key}: {v[0]} [{v[1]}, {v[2]}]" for key, v in scores.items()), sep="  ")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
