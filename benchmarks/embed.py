"""Images a second of ``saccade embed``, from files to a feature table, beside a plain timm loop.

    python benchmarks/embed.py [--backbone vit_small_patch16] [--size 224] [--images 256] [--rounds 3] [--json]
        [--smoke]

The plain loop: timm's network in fp32, torchvision's resize, crop and normalisation in a DataLoader with one process
a core, features kept in memory. Random weights on both sides; the time does not depend on them.
The last line is one JSON object: images a second of ``ours`` and ``peer``, and their ``ratio``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision.transforms.v2 as T
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import harness
from harness import Work
from peer import timm_vit
from saccade import api
from saccade.data.synthetic.images import TissueSource
from saccade.features.table import FeatureTable


def write_images(folder: Path, images: int) -> None:
    """JPEG files of 256 px."""
    source = TissueSource(images)
    for number in range(images):
        image = Image.fromarray(source.read(number).pixels.transpose(1, 2, 0))
        image.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)


class Files(Dataset):
    def __init__(self, folder: Path, size: int):
        self.paths = sorted(folder.glob("*.jpg"))
        steps = [T.Resize(size), T.CenterCrop(size), T.ToImage(), T.ToDtype(torch.float32, scale=True)]
        self.transform = T.Compose([*steps, T.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def set_up_ours(folder: Path, backbone: str) -> Work:
    def work() -> int:
        table = api.embed(f"random:{backbone}", folder, out=folder / "features.parquet")
        assert isinstance(table, FeatureTable)
        return len(table)

    return work


def set_up_peer(folder: Path, backbone: str, size: int) -> Work:
    _, name, patch = backbone.split("_")
    network = timm_vit(name, int(patch.removeprefix("patch")), size).eval()

    @torch.no_grad()
    def work() -> int:
        workers = torch.get_num_threads()
        loader = DataLoader(Files(folder, size), batch_size=64, num_workers=workers, multiprocessing_context="fork")
        return len(torch.cat([network(x) for x in loader]))

    return work


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = harness.parse(parser, {"backbone": "vit_tiny_patch16", "size": 32, "images": 4, "rounds": 1}, argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, options.images)
        mine, theirs = harness.abab(
            partial(set_up_ours, folder, options.backbone),
            partial(set_up_peer, folder, options.backbone, options.size),
            options.rounds,
        )
    text = f"saccade {mine:.1f} images/s, plain timm {theirs:.1f}: {mine / theirs:.2f} times"
    result = {"ours": round(mine, 2), "peer": round(theirs, 2), "ratio": round(mine / theirs, 3)}
    harness.finish(options, result | {"backbone": options.backbone, "size_px": options.size}, [text])


if __name__ == "__main__":
    main()
