"""``saccade search HIERARCHY SLIDE``: the slides of a feature table that are most similar to a query slide."""

from __future__ import annotations

from pathlib import Path

from saccade.data.slides.detect import is_slide
from saccade.errors import ModelError, UsageError
from saccade.features.stores import open_store
from saccade.hierarchy.evaluate_slides import embed, slides_of
from saccade.tasks.search import Query, SearchOptions, SearchResult, find_neighbours
from saccade.train.loop import Console


def search(
    run: Path, slide: str | Path, location: str | Path, options: SearchOptions, console: Console
) -> SearchResult:
    """The nearest neighbours of one slide in a table of slides that the hierarchy in ``run`` made.

    Raises ModelError when another model made the table.
    """
    if Path(slide).is_file() and not is_slide(Path(slide), asked=True):
        raise UsageError("search with a hierarchy takes a slide", got=slide)
    store = open_store(location)
    tiles = slides_of(run, str(slide), {})
    if len(tiles.entries) != 1:
        raise UsageError("search takes one slide", got=f"{len(tiles.entries):,} in {slide}")
    table = embed(run, tiles, console)
    if table.about["weights"] != store.about.get("weights"):
        raise ModelError(
            f"{location} was made by another model",
            got=table.model,
            expected=store.model,
            hint="search with that model, or embed the slides again with this hierarchy",
        )
    return find_neighbours(
        store, table.features[0], Query(str(slide), tiles.slides[0].thumbnail(256), tiles.hashes[0]), options
    )
