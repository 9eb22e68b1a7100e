"""From encoded files to all crops of a batch, images a second: saccade beside lightly, with the same workers.

    python benchmarks/views.py [--workers 2] [--rounds 3] [--json] [--smoke]

Two settings: 64-px PNG to 2 x 64 and 8 x 32 px, and 256-px JPEG to 2 x 224 and 8 x 96 px; all of DINO's changes of
colour, blur and solarisation, batch 64. lightly: DINOTransform in a DataLoader with that many processes. saccade:
that many threads; it decodes once for the whole run, so both figures are given: ``first_pass`` counts the decoding
of every image, ``ratio`` the passes after it.

The last line is one JSON object: images a second of ours and peer on the PNG, ``ratio``; ``ratio_256`` for the JPEG.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import harness
from harness import Work
from peer import transform
from saccade import runtime
from saccade.augment.settings import ViewsConfig, resolve_views
from saccade.augment.views import make_views
from saccade.data.cache.image_cache import batch_indices, build_cache, input_spec
from saccade.data.open import open_source
from saccade.data.synthetic.images import TissueSource

BATCH, LOCAL = 64, 8


@dataclass(frozen=True)
class Setting:
    """Images and crops of one comparison; ``images``: how many files."""

    suffix: str
    images: int
    side_px: int
    global_px: int
    local_px: int


PNG64 = Setting(".png", 640, 64, 64, 32)
JPEG256 = Setting(".jpg", 256, 256, 224, 96)
SMOKE = (replace(PNG64, images=BATCH), Setting(".jpg", BATCH, 64, 48, 24))


def write_images(setting: Setting, folder: Path) -> None:
    """Tissue tiles as files of the setting's size."""
    source = TissueSource(setting.images)
    for number in range(setting.images):
        image = Image.fromarray(source.read(number).pixels.transpose(1, 2, 0))
        side = (setting.side_px, setting.side_px)
        image.resize(side, Image.Resampling.BICUBIC).save(folder / f"{number:04d}{setting.suffix}", quality=90)


class Files(Dataset):
    """Encoded files through lightly's transform."""

    def __init__(self, folder: Path, setting: Setting):
        self.paths = sorted(folder.iterdir())
        self.transform: Callable[[Image.Image], Any] = transform(setting.global_px, setting.local_px, LOCAL)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


class Ours:
    """saccade's cache and views, as the training loop uses them."""

    def __init__(self, folder: Path, setting: Setting):
        self.folder, self.setting = folder, setting
        options = ViewsConfig(local_px=setting.local_px, local_scale=(0.05, 0.4), solarise_prob=0.2)
        self.config = resolve_views(options, size_px=setting.global_px, channels=3, patch=8, local_count=LOCAL)
        self.step = 0
        self.decode()

    def decode(self) -> None:
        self.cache = build_cache(open_source(self.folder), cache_px=round(1.5 * self.setting.global_px))
        self.spec = input_spec(self.cache, self.setting.global_px, grey=False)

    def one_pass(self) -> int:
        for _ in range(len(self.cache) // BATCH):
            batch = self.cache.batch(batch_indices(len(self.cache), self.step, BATCH, 0))
            make_views(batch, self.config, self.spec, seed=0, step=self.step)
            self.step += 1
        return len(self.cache) // BATCH * BATCH

    def first_pass(self) -> int:
        """With the decoding."""
        self.decode()
        return self.one_pass()


def set_up_ours(folder: Path, setting: Setting, workers: int, first: bool) -> Work:
    torch.set_num_threads(workers)
    runtime.keep_freed_memory()  # as saccade pretrain does
    ours = Ours(folder, setting)
    return ours.first_pass if first else ours.one_pass


def set_up_peer(folder: Path, setting: Setting, workers: int) -> Work:
    files = Files(folder, setting)
    loader = DataLoader(
        files,
        batch_size=BATCH,
        num_workers=workers,
        multiprocessing_context="fork",
        persistent_workers=True,
        drop_last=True,
    )
    return lambda: sum(len(views[0]) for views in loader)


def compare(setting: Setting, workers: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(setting, folder)
        peer = partial(set_up_peer, folder, setting, workers)
        mine, theirs = harness.abab(partial(set_up_ours, folder, setting, workers, False), peer, rounds)
        first, again = harness.abab(partial(set_up_ours, folder, setting, workers, True), peer, rounds)
    return {"ours": mine, "peer": theirs, "ratio": mine / theirs, "first_pass": first / again}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = harness.parse(parser, {"rounds": 1, "workers": 1}, argv)
    settings = SMOKE if options.smoke else (PNG64, JPEG256)
    small, large = (compare(s, options.workers, options.rounds) for s in settings)
    lines = [
        f"{name}: saccade {speed['ours']:.0f} images/s, lightly {speed['peer']:.1f}: {speed['ratio']:.1f} times; "
        f"{speed['first_pass']:.1f} times with every image decoded"
        for name, speed in {"64-px PNG": small, "256-px JPEG": large}.items()
    ]
    result: dict[str, Any] = {key: round(value, 2) for key, value in small.items()}
    result |= {f"{key}_256": round(value, 2) for key, value in large.items()} | {"workers": options.workers}
    harness.finish(options, result, lines)


if __name__ == "__main__":
    main()
