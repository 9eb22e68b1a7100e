"""Do attention maps find nuclei? Jaccard index of thresholded maps with true masks, trained against random weights.

    python benchmarks/attention_jaccard.py RUN FOLDER [--size 512] [--seeds 5] [--json] [--smoke]

FOLDER holds images/ and nuclei-masks/ with files of the same names (as MoNuSeg does). Each map keeps 60 %
of its mass (figure 4 of Caron et al. 2021). Beside the network with random weights stands chance: a mask of as
many patches as the trained map keeps, drawn at random. The last line is one JSON object: the index
of the trained mean map (``ours``) and of random weights (``peer``), and their ``ratio``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import harness
from saccade.attention.image import normalised
from saccade.attention.maps import attention_map, jaccard, threshold_mask, upsample
from saccade.data.images.decode import decode, decode_mask
from saccade.features.embed_images import random_twin
from saccade.models.backbones.weights import LoadedModel, load_model

KEEP = 0.6
SMOKE = {"run": "random:vit_micro_patch8", "folder": harness.TEMPORARY, "size": 32, "seeds": 1}


def agreement(model: LoadedModel, pixels: np.ndarray, truth: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Jaccard of the mean map, of its complement, and of each head; and the patches that the mean map keeps."""
    amap = attention_map(model.backbone, normalised(pixels, model.spec), query="cls")
    patches = threshold_mask(amap.mean, KEEP)
    scores = {"mean map": jaccard(upsample(patches, truth.shape), truth)}
    scores["complement"] = jaccard(upsample(~patches, truth.shape), truth)
    for number, head in enumerate(amap.values if len(amap.values) > 1 else ()):
        scores[f"head {number}"] = jaccard(upsample(threshold_mask(head, KEEP), truth.shape), truth)
    return scores, patches


def by_chance(truth: np.ndarray, patches: np.ndarray, seed: int) -> float:
    """Jaccard of as many patches drawn at random."""
    shuffled = np.random.default_rng(seed).permutation(patches.ravel()).reshape(patches.shape)
    return jaccard(upsample(shuffled, truth.shape), truth)


def smoke_images(folder: Path) -> None:
    """Two images of noise with masks of noise."""
    rng = np.random.default_rng(0)
    for name, shape in (("images", (32, 32, 3)), ("nuclei-masks", (32, 32))):
        (folder / name).mkdir()
        for number in range(2):
            Image.fromarray(255 * rng.integers(0, 2, shape, dtype=np.uint8)).save(folder / name / f"{number}.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="run or model")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=5, help="networks with random weights")
    options = harness.parse(parser, SMOKE, argv, required=("run", "folder"))
    if options.smoke:
        smoke_images(options.folder)
    trained = load_model(options.run)
    models = {"trained": [trained], "random weights": [random_twin(trained, seed) for seed in range(options.seeds)]}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in [*models, "chance"]}
    for path in sorted((options.folder / "images").glob("*.png")):
        truth = decode_mask((options.folder / "nuclei-masks" / path.name).read_bytes(), path.name)
        image = torch.from_numpy(decode(path.read_bytes(), path.name).astype(np.float32))[None]
        side = (options.size, options.size)
        pixels = torch.nn.functional.interpolate(image, size=side, mode="bilinear", antialias=True)[0].numpy()
        for name, twins in models.items():
            for model in twins:
                values, patches = agreement(model, pixels, truth)
                for kind, value in values.items():
                    scores[name].setdefault(kind, []).append(value)
                if name == "trained":
                    chance = [by_chance(truth, patches, seed) for seed in range(20)]
                    scores["chance"].setdefault("mean map", []).append(float(np.mean(chance)))
    means = {name: {kind: round(float(np.mean(v)), 4) for kind, v in kinds.items()} for name, kinds in scores.items()}
    lines = [
        f"{name:15s} " + ", ".join(f"{kind} {v:.3f}" for kind, v in kinds.items()) for name, kinds in means.items()
    ]
    ours, peer = means["trained"]["mean map"], means["random weights"]["mean map"]
    result = {"ours": ours, "peer": peer, "ratio": round(ours / max(peer, 1e-9), 2)}
    result |= {"fields": len(scores["trained"]["mean map"]), "size_px": options.size, "keep": KEEP}
    harness.finish(options, result | means, lines)


if __name__ == "__main__":
    main()
