"""Do attention maps find nuclei? Jaccard index of thresholded maps with true masks, trained against random weights.

    python benchmarks/attention_jaccard.py RUN FOLDER [--size 512] [--seeds 5] [--json]

FOLDER holds images/ and nuclei-masks/ with files of the same names (as MoNuSeg does). Each map keeps 60 %
of its mass (figure 4 of Caron et al. 2021). Beside the network with random weights stands chance: a mask of as
many patches as the trained map keeps, drawn at random. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from saccade.attention.image import normalised
from saccade.attention.maps import attention_map, jaccard, threshold_mask, upsample
from saccade.data.images.decode import decode, decode_mask
from saccade.features.embed_images import random_twin
from saccade.models.backbones.weights import LoadedModel, load_model

KEEP = 0.6


def agreement(model: LoadedModel, pixels: np.ndarray, truth: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Jaccard of the mean map, of its complement, and of each head; and the patches that the mean map keeps."""
    amap = attention_map(model.backbone, normalised(pixels, model.spec), query="cls")
    kept = threshold_mask(amap.mean, KEEP)
    found = {"mean map": jaccard(upsample(kept, truth.shape), truth)}
    found["what the map leaves out"] = jaccard(upsample(~kept, truth.shape), truth)
    for number, head in enumerate(amap.values if len(amap.values) > 1 else ()):
        found[f"head {number}"] = jaccard(upsample(threshold_mask(head, KEEP), truth.shape), truth)
    return found, kept


def by_chance(truth: np.ndarray, kept: np.ndarray, seed: int) -> float:
    """Jaccard of as many patches drawn at random."""
    shuffled = np.random.default_rng(seed).permutation(kept.ravel()).reshape(kept.shape)
    return jaccard(upsample(shuffled, truth.shape), truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=5, help="networks with random weights")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    options = parser.parse_args()
    trained = load_model(options.run)
    models = {"trained": [trained], "random weights": [random_twin(trained, seed) for seed in range(options.seeds)]}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in [*models, "chance"]}
    for path in sorted((options.folder / "images").glob("*.png")):
        truth = decode_mask((options.folder / "nuclei-masks" / path.name).read_bytes(), path.name)
        whole = torch.from_numpy(decode(path.read_bytes(), path.name).astype(np.float32))[None]
        side = (options.size, options.size)
        pixels = torch.nn.functional.interpolate(whole, size=side, mode="bilinear", antialias=True)[0].numpy()
        for name, twins in models.items():
            for model in twins:
                found, kept = agreement(model, pixels, truth)
                for kind, value in found.items():
                    scores[name].setdefault(kind, []).append(value)
                if name == "trained":
                    chance = [by_chance(truth, kept, seed) for seed in range(20)]
                    scores["chance"].setdefault("mean map", []).append(float(np.mean(chance)))
    means = {name: {kind: round(float(np.mean(v)), 4) for kind, v in found.items()} for name, found in scores.items()}
    if not options.json:
        for name, found in means.items():
            print(f"{name:15s} " + ", ".join(f"{kind} {value:.3f}" for kind, value in found.items()))
    print(json.dumps({"fields": len(scores["trained"]["mean map"]), "size_px": options.size, "keep": KEEP} | means))


if __name__ == "__main__":
    main()
