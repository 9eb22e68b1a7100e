"""Two worked examples: a flat ViT on a region of a slide, and a look-up table for patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saccade.cost.step import FP32, FRAGMENTATION, Price, Workload, price
from saccade.methods.supervised import SupervisedConfig
from saccade.models.attention_patterns import computed_pairs, parse_pattern
from saccade.models.backbones.vit import ViTSettings
from saccade.models.registry import configured

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One way to process a region.

    Parameters
    ----------
    name : str
        What is done.
    matrices : int
        Bytes of the attention matrices of one layer.
    peak : int
        Bytes of all tensors at the peak of one training step; memory fragmentation is not counted.
    flops : int
        Floating-point operations of the step.
    """

    name: str
    matrices: int
    peak: int
    flops: int


def region_costs(
    size_px: int = 4096, batch: int = 4, backbone: str = "vit_small_patch16", tile_px: int = 256
) -> list[Row]:
    """What a training step with labels costs in float32 on regions of this size: flat, with windows, as a hierarchy.

    HIPT (Chen et al. 2022) looks at every tile by itself, and at the grid of their vectors with a second ViT; its
    tiles are taken ``batch`` at a time.
    """
    network = configured(backbone, size_px=size_px)
    assert isinstance(network, ViTSettings)
    config = SupervisedConfig(classes=("a", "b"))
    flat = Workload(network, "supervised", config, (1, size_px), (0, 0), batch, image_px=size_px)
    rows = []
    for name, load in (
        ("flat, attention written out", flat.with_(explicit=True)),
        ("flat, fused attention", flat.with_(explicit=False)),
        ("flat, windows of 7", flat.with_(network=configured(f"{backbone}_window7", size_px=size_px))),
    ):
        cost = price(load)
        rows.append(Row(name, written(load), _tensors(cost), cost.total_flops))
    tiles = (size_px // tile_px) ** 2
    tile = flat.with_(network=configured(backbone, size_px=tile_px), global_views=(1, tile_px), image_px=tile_px)
    grid = flat.with_(
        network=configured("grid_tiny", channels=network.dim + 1, size_px=size_px // tile_px),
        global_views=(1, size_px // tile_px),
        image_px=size_px // tile_px,
        image_item=4,
    )
    low, high = price(tile), price(grid)
    rows.append(
        Row(
            f"hierarchy (HIPT): {tiles} tiles of {tile_px} px, then their grid",
            max(written(tile.with_(explicit=True)), written(grid.with_(explicit=True))),
            max(_tensors(low), _tensors(high)),
            tiles * low.total_flops + high.total_flops,
        )
    )
    return rows


def _tensors(cost: Price) -> int:
    return cost.peak - cost.memory.get(FRAGMENTATION, 0)


def written(load: Workload) -> int:
    """Bytes of the attention matrices of one layer that this workload writes down: none on the fused path."""
    s = load.network
    assert isinstance(s, ViTSettings)
    if s.attention == "full" and load.explicit is not True:
        return 0
    grid = (load.global_views[1] // s.patch,) * s.axes
    return FP32 * load.batch * s.heads * computed_pairs(parse_pattern(s.attention), grid, 1 + s.registers, 0)


def table_rows(patch: int, channels: int, axes: int = 2) -> tuple[int, int]:
    """Bits, and decimal digits, of the number of different patches of bytes: a look-up table has one row for each."""
    bits = 8 * channels * patch**axes
    return bits, math.floor(bits * math.log10(2)) + 1


def lookup_table_size(patch: int, channels: int, dim: int, axes: int = 2) -> str:
    """The lecture's comparison: words are looked up in a table, patches are projected."""
    numbers = channels * patch**axes
    bits, digits = table_rows(patch, channels, axes)
    side = " x ".join([str(patch)] * axes)
    return (
        f"A look-up table, as for words, would need a row for every possible patch of {side} x {channels} bytes: "
        f"256^{numbers} = 2^{bits} rows, a number of {digits:,} digits. The learned projection has "
        f"{(numbers + 1) * dim:,} parameters."
    )
