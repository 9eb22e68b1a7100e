"""``saccade attend`` on a slide: a score for every tile, or for every patch of every tile, and its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saccade.attention.maps import attention_map
from saccade.augment.views import plain_view
from saccade.base import frames
from saccade.base.files import write_file
from saccade.data.slides.slide import Slide
from saccade.data.slides.slide_source import SlideTiles
from saccade.data.slides.streaming import TileStore
from saccade.data.slides.tiling import Tiling
from saccade.errors import DamagedFile, DataError, UsageError
from saccade.features.embed_slides import Embedder
from saccade.features.table import l2_normalize
from saccade.models.nn.attention import has_attention
from saccade.viz.heatmap import TileScores, extremes, picture, save_tiff
from saccade.viz.qupath import save_geojson
from saccade.viz.save import save_by_suffix

Level = Literal["tile", "patch", "region", "composed"]
LEVELS: tuple[Level, ...] = ("tile", "patch")  # of one network; the others need a hierarchy
MOST_OBJECTS = 200_000  # QuPath is slow with more
SUFFIXES = (".png", ".tif", ".geojson", ".csv")


def place_of(query: str) -> tuple[float, float]:
    """(y, x) in pixels of level 0 of a query ``Y,X``. Raises UsageError."""
    try:
        y, x = (float(word) for word in query.split(","))
        if not np.isfinite((y, x)).all():
            raise ValueError
    except ValueError:
        raise UsageError("--query of a slide is cls, or Y,X in pixels of its full resolution", got=query) from None
    return y, x


def check_form(out: Path) -> None:
    """Raise UsageError for a file name that a map of a slide cannot be written to."""
    if out.suffix and out.suffix not in SUFFIXES:
        raise UsageError(
            f"unsupported format of a slide map: {out.name}",
            expected=", ".join(SUFFIXES) + ", or a name without a suffix for a folder with all of them",
        )


@dataclass(frozen=True)
class SlideOptions:
    """Options of ``saccade attend`` on a slide.

    Parameters
    ----------
    query : str
        Of tiles: "cls", similarity to the slide average; or "Y,X" in pixels of level 0, similarity to the tile there.
    level : {"tile", "patch", "region", "composed"}
        "patch" is the attention of the class token inside each tile; the last two need a hierarchy.
    layer : int, optional
        For patches; None is the last layer.
    tiling : Tiling
        How the slide is cut into tiles; open values are those of the model's training.
    max_bad : float
        Fraction of tiles that may be unreadable; they are left out.

    Raises
    ------
    UsageError
        The query is neither form.
    """

    query: str = "cls"
    level: Level = "tile"
    layer: int | None = None
    tiling: Tiling = dataclasses.field(default_factory=Tiling)
    max_bad: float = 0.05

    def __post_init__(self) -> None:
        if self.query != "cls":
            place_of(self.query)


@dataclass(frozen=True)
class SlideAttention(frames.Tabular):
    """A slide with scores; ``save`` writes one file by suffix, or all of them into a folder."""

    slide: Slide
    heat: TileScores
    model: str
    options: SlideOptions

    def text(self) -> str:
        """The result as text for a terminal."""
        return f"{self.slide.path.name}: {self.heat.name}, {len(self.heat.scores):,} squares, {self.heat.range}"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        scores = self.heat.scores
        return {
            "slide": self.slide.path.name,
            "model": self.model,
            "score": self.heat.name,
            "level": self.options.level,
            "query": self.options.query,
            "squares": len(scores),
            "side_px_level0": self.heat.side_px,
            "side_y_px_level0": self.heat.sides_px[0],
            "lowest": float(scores.min()),
            "mean": float(scores.mean()),
            "highest": float(scores.max()),
        }

    def save(self, out: Path) -> list[Path]:
        """Write PNG, TIFF, GeoJSON or CSV by suffix; without one a folder with all, and the highest and lowest tiles.

        Scores are written first and the TIFF last: it takes longest, and an interruption then loses only the TIFF.

        Raises
        ------
        StorageError
            A file cannot be written.
        """
        check_form(out)
        if out.suffix:
            return [self._one(out)]
        names = ["scores.csv", *(["tiles.geojson"] if len(self.heat.scores) <= MOST_OBJECTS else []), "heatmap.png"]
        files = [self._one(out / name) for name in names]
        if self.options.level != "patch":
            files.append(write_file(out / "extremes.png", extremes(self.slide, self.heat).save))
        return [*files, self._one(out / "heatmap.tif")]

    def frame_columns(self) -> dict[str, np.ndarray]:
        """One row per tile: x and y of its upper left corner in pixels of level 0, its sides, its score."""
        x, y = np.asarray(self.heat.coords).T
        down, across = self.heat.sides_px
        side_x, side_y = np.full(len(x), across), np.full(len(x), down)
        return {"x": x, "y": y, "side_x": side_x, "side_y": side_y, "score": np.asarray(self.heat.scores)}

    def _repr_html_(self) -> str:
        return frames.to_html(self.text(), self.frame_columns())

    def _one(self, path: Path) -> Path:
        writers: dict[str, Callable[[Path], object]] = {
            ".png": lambda target: write_file(target, picture(self.slide, self.heat).save),
            ".tif": lambda target: save_tiff(target, self.slide, self.heat),
            ".csv": self.heat.save_csv,
            ".geojson": lambda target: save_geojson(target, self.heat),
        }
        return save_by_suffix(path, writers, "format of a slide map")


def attend_slide(
    embedder: Embedder, options: SlideOptions, report: Callable[[int, int], None] | None = None
) -> SlideAttention:
    """Scores of one slide, over the tiles that can be read.

    Raises
    ------
    UsageError
        The query lies outside the tissue.
    DataError
        The slide has no tissue.
    TooManyDamaged
        More tiles are unreadable than ``max_bad`` allows.
    """
    tiles = embedder.tiles
    if len(tiles.entries) != 1:
        raise UsageError("attend takes one slide", got=f"{len(tiles.entries)} slides")
    if not len(tiles):
        raise DataError(f"{tiles.name}: no tile with enough tissue")
    if options.level == "patch":
        heat = _patches(embedder, options, report)
    else:
        if options.layer is not None:
            raise UsageError("--layer has no effect on scores of whole tiles", hint="add --level patch")
        heat = _tiles(embedder, options.query, report)
    return SlideAttention(tiles.slides[0], heat, embedder.model.name, options)


def _tiles(embedder: Embedder, query: str, report: Callable[[int, int], None] | None) -> TileScores:
    tiles, n_done = embedder.tiles, 0

    def done(count: int) -> None:
        nonlocal n_done
        n_done += count
        if report is not None:
            report(n_done, len(tiles))

    number = None if query == "cls" else _tile_at(tiles, query)
    features, readable = embedder.features(0, done)
    grid = tiles.grid(0)
    if not len(features):
        raise no_tile(tiles)
    if number is None:
        asked, name = l2_normalize(features).mean(axis=0), "similarity to the slide average"
    else:
        if not readable[number]:
            raise UsageError(f"the tile at {query} cannot be read", got=tiles.name, hint="choose another tile")
        # Without subtracting the mean all tiles are similar.
        features = features - features.mean(axis=0)
        asked, name = features[int(readable[:number].sum())], f"similarity to the tile at {query}"
    scores = l2_normalize(features) @ l2_normalize(asked[None])[0]
    return TileScores(name, grid.coords[readable], grid.step_px[1], scores, grid.step_px[0])


def no_tile(tiles: SlideTiles) -> DamagedFile:
    return DamagedFile(f"{tiles.name}: none of its {len(tiles):,} tiles can be read", hint="copy it again")


def _tile_at(tiles: SlideTiles, query: str) -> int:
    (y, x), (rows, columns) = place_of(query), tiles.slides[0].size_px
    if not (0 <= y < rows and 0 <= x < columns):
        raise UsageError(
            f"--query {query} lies outside {tiles.name}",
            expected=f"Y,X with Y from 0 to {rows - 1} and X from 0 to {columns - 1}, pixels of its full resolution",
        )
    down, across = tiles.grid(0).step_px
    corners = tiles.grid(0).coords
    inside = (corners[:, 0] <= x) & (x < corners[:, 0] + across) & (corners[:, 1] <= y) & (y < corners[:, 1] + down)
    if not inside.any():
        raise UsageError(f"no tile with enough tissue lies at {query}", hint="--tissue 0 keeps all tiles")
    return int(np.flatnonzero(inside)[0])


def _patches(embedder: Embedder, options: SlideOptions, report: Callable[[int, int], None] | None) -> TileScores:
    """Attention of the class token over the patches of every tile, in multiples of the even share."""
    if options.query != "cls":
        raise UsageError("inside tiles only --query cls is supported", got=f"--query {options.query}")
    tiles, cache = embedder.tiles, embedder.cache()
    network = embedder.model.backbone.cpu().eval()
    if not has_attention(network):
        raise UsageError(f"{embedder.model.name} has no attention", hint="--level tile shows the similarity of tiles")
    store = cache.flat
    assert isinstance(store, TileStore)
    coords, scores, (down, across) = [], [], tiles.grid(0).step_px
    for number in range(len(tiles)):
        if number % 16 == 0:
            cache.expect(np.arange(number, min(number + 32, len(tiles))))
        batch = cache.batch(np.array([number]))
        if number in store.failed:
            continue
        x = plain_view(batch, embedder.model.spec)
        amap = attention_map(network, x, query="cls", layer=-1 if options.layer is None else options.layer)
        sides = (down / amap.grid[0], across / amap.grid[1])
        even = amap.mean / max(float(amap.mean.mean()), 1e-12)
        rows, columns = np.indices(amap.grid)
        corner = tiles.grid(0).cells[number] * np.array(amap.grid)
        coords.append(np.stack([(corner[1] + columns).ravel(), (corner[0] + rows).ravel()], axis=1) * sides[::-1])
        scores.append(even.ravel())
        if report is not None:
            report(number + 1, len(tiles))
    if not embedder.readable(0).any():
        raise no_tile(tiles)
    name = "attention of the class token inside each tile, in multiples of the even share"
    return TileScores(
        name, np.rint(np.concatenate(coords)).astype(np.int64), sides[1], np.concatenate(scores), sides[0]
    )
