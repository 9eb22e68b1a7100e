"""Slides: tiles a second against raw OpenSlide reads of the same regions (A B A B), tissue masks, and a large
slide: written, read, and embedded by a network.

    python benchmarks/slides.py SLIDE ... [--mpp 0.5 --tile 256] [--draw 40000 --folder FOLDER] [--json] [--smoke]

A pass reads every tile of a slide once, in an order that is a function of its number, the same for both sides. Each
pass begins with new handles on both sides, since OpenSlide keeps the last 32 MiB it decoded, which is a whole small
slide. A round is as many passes as read 600 tiles, one to four seconds; rounds of both sides take turns. Processor
milliseconds a tile, of reading in one process, say how much of a difference is a busy machine's.

Prints as its last line one object with ``ours``, ``peer`` and ``ratio`` (tiles a second, over all slides).
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide

import harness
from saccade.data.cache.image_cache import batch_indices
from saccade.data.open import open_source
from saccade.data.slides.slide import open_slide
from saccade.data.slides.slide_pool import SlidePool
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.streaming import TileSpec, TileStore
from saccade.data.slides.tiling import Tiling
from saccade.data.slides.tissue_mask import find_tissue
from saccade.data.synthetic.slides import Drawing, draw_slides

ROUNDS, TILES_PER_ROUND, BATCH = 4, 600, 64
SMOKE = {"folder": harness.TEMPORARY, "tile": 64, "workers": 1}


def ours(tiles: SlideTiles, numbers: np.ndarray, workers: int) -> float:
    """Seconds in which new worker processes hand over these tiles; their start, a tile of each, is not counted."""
    store = TileStore(tiles, TileSpec(tiles.tile_px, 3, np.dtype(np.uint8)), workers=workers, max_bad=0, say=print)
    store.images(numbers[:workers])
    began = time.perf_counter()
    batches = [numbers[i : i + BATCH] for i in range(workers, len(numbers), BATCH)]
    for here, ahead in zip(batches, [*batches[1:], np.array([], int)]):
        store.expect(here)
        store.expect(ahead)
        store.images(here)
    seconds = time.perf_counter() - began
    store.close()
    return seconds


def raw(tiles: SlideTiles, numbers: np.ndarray, first: int) -> float:
    """Seconds of OpenSlide alone for the same regions at the level that saccade reads, as a user's loop would do it.

    The handles are new; like ``ours`` it has read the ``first`` tiles before the clock starts.
    """
    handles = [openslide.OpenSlide(str(slide.path)) for slide in tiles.entries]

    def read(number: int) -> None:
        k = int(tiles.slide_of[number])
        x, y = (int(v) for v in tiles.coords[number])
        step = tiles.grid(k).step_px[0]
        level = max(i for i, d in enumerate(handles[k].level_downsamples) if d <= step / tiles.tile_px * 1.01)
        side = round(step / handles[k].level_downsamples[level])
        np.asarray(handles[k].read_region((x, y), level, (side, side)).convert("RGB"))

    for number in numbers[:first]:
        read(number)
    began = time.perf_counter()
    for number in numbers[first:]:
        read(number)
    return time.perf_counter() - began


def cpu_ms(tiles: SlideTiles, numbers: np.ndarray) -> tuple[float, float]:
    """Processor milliseconds a tile of one pass in this process: as saccade reads it, and OpenSlide alone."""
    slides = SlidePool(tiles.entries, tiles.tiling.slide_mpp, tiles.slides.dark)
    began = time.process_time()
    for number in numbers:
        x, y = (int(v) for v in tiles.coords[number])
        slides[int(tiles.slide_of[number])].read(x, y, mpp=tiles.mpp, size_px=(tiles.tile_px, tiles.tile_px))
    middle = time.process_time()
    raw(tiles, numbers, 0)
    ours_ms, raw_ms = (1e3 * seconds / len(numbers) for seconds in (middle - began, time.process_time() - middle))
    return ours_ms, raw_ms


def speed(path: str, tiling: Tiling, workers: int, rounds: int, tiles_per_round: int) -> dict[str, Any]:
    """Median of the rounds of both sides; a round has enough passes for ``tiles_per_round`` tiles, with new handles."""
    tiles = open_source(path, tiling=tiling)
    assert isinstance(tiles, SlideTiles)
    passes = math.ceil(tiles_per_round / (len(tiles) - workers))
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    cpu = {"ours": math.inf, "peer": math.inf}
    for number in range(rounds):
        orders = [batch_indices(len(tiles), number * passes + i, len(tiles), seed=0) for i in range(passes)]
        times["ours"].append(sum(ours(tiles, order, workers) for order in orders))
        times["peer"].append(sum(raw(tiles, order, workers) for order in orders))
        for side, milliseconds in zip(cpu, cpu_ms(tiles, orders[0])):
            cpu[side] = min(cpu[side], milliseconds)
    read = passes * (len(tiles) - workers)
    per_second = {name: read / statistics.median(values) for name, values in times.items()}
    spread = {f"{name}_rounds": [round(read / seconds, 1) for seconds in values] for name, values in times.items()}
    return {
        "slide": Path(path).name,
        "tiles": len(tiles),
        "passes": passes,
        **per_second,
        "ratio": per_second["ours"] / per_second["peer"],
        "cpu_ms": cpu,
        **spread,
    }


def mask_seconds(path: str, slide_mpp: float | None) -> dict[str, Any]:
    seconds, cpu = [], []
    for _ in range(3):
        slide = open_slide(path)
        if slide.spacing_um is None:
            slide = open_slide(path, slide_mpp)
        began, cpu_began = time.perf_counter(), time.process_time()
        tissue = find_tissue(slide)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    return {"slide": Path(path).name, "seconds": min(seconds), "cpu_seconds": min(cpu), **tissue.fractions()}


def network_pass(folder: Path, model: str) -> dict[str, Any]:
    """``saccade embed`` over the same tiles, as a command: its seconds, and the memory of its largest process."""
    out = folder / "features"
    command = [sys.executable, "-m", "saccade", "embed", model, str(folder), "--out", str(out)]
    began = time.perf_counter()
    child = subprocess.Popen([*command, "--mpp", "1", "--tile", "256"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"saccade embed failed: {status}")
    seconds = time.perf_counter() - began
    result = {"embed_model": model, "embed_seconds": seconds, "embed_cpu_seconds": used.ru_utime + used.ru_stime}
    return result | {"embed_peak_mib": round(used.ru_maxrss / 1024)}


def large(size: int, folder: Path, workers: int, model: str) -> dict[str, Any]:
    """Write one slide of ``size`` pixels, find its tissue, read all its tiles, and give them to a network."""
    result: dict[str, Any] = {"size": size}
    began = time.perf_counter()
    draw_slides(Drawing(n=1, size=size), folder)
    result["write_seconds"] = time.perf_counter() - began
    result["file_mib"] = round((folder / "slide-0000.tif").stat().st_size / 2**20)
    began = time.perf_counter()
    tiles = open_source(folder, tiling=Tiling(mpp=1.0, tile_px=256))
    assert isinstance(tiles, SlideTiles)
    result["open_mask_tiles_seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    store = TileStore(tiles, TileSpec(256, 3, np.dtype(np.uint8)), workers=workers, max_bad=0, say=print)
    for start in range(0, len(tiles), BATCH):
        store.expect(np.arange(start, min(start + 3 * BATCH, len(tiles))))
        store.images(np.arange(start, min(start + BATCH, len(tiles))))
    seconds = time.perf_counter() - began
    store.close()
    result |= {"tiles": len(tiles), "read_seconds": seconds, "tiles_per_second": len(tiles) / seconds}
    result["read_peak_mib"] = peak_mib()
    return result | network_pass(folder, model)


def peak_mib() -> int:
    """Peak memory of the largest process: this one or one of its children (which begin with the size of this one)."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="*")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--slide-mpp", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("large-slide"))
    parser.add_argument("--model", default="random:resnet10_w16", help="for the network pass over the drawn slide")
    options = harness.parse(parser, SMOKE, argv)
    if options.smoke:
        draw_slides(Drawing(n=1, size=512, region=64), options.folder)
        options.slides = [str(options.folder / "slide-0000.tif")]
    if not options.slides:
        parser.error("missing: SLIDE")
    size = (1, 20) if options.smoke else (ROUNDS, TILES_PER_ROUND)
    tiling = Tiling(options.mpp, options.tile, None, options.slide_mpp)
    masks = [mask_seconds(path, options.slide_mpp) for path in options.slides]
    speeds = [speed(path, tiling, options.workers, *size) for path in options.slides]
    ours_mean, peer_mean = (float(np.mean([row[side] for row in speeds])) for side in ("ours", "peer"))
    ratio = float(np.exp(np.mean([np.log(row["ratio"]) for row in speeds])))
    result: dict[str, Any] = {"ours": ours_mean, "peer": peer_mean, "ratio": ratio, "masks": masks, "speed": speeds}
    if options.draw:
        result["large"] = large(options.draw, options.folder, options.workers, options.model)
    result["peak_mib"] = peak_mib()
    lines = [f"{key} {row}" for key, value in result.items() for row in (value if isinstance(value, list) else [value])]
    harness.finish(options, result, lines)


if __name__ == "__main__":
    main()
