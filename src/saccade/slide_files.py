"""The files of features in a folder, one a slide: which of them still hold, and what each is called. No torch here.

A file holds where everything is the same that its vectors were computed from: slide, weights, how the slide was cut,
and how pixels became the network's input. What is only known of the slide (its label) is written anew into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.exchange import SlideFeatures, load_features, read_about, save_features

SAME = ("slide_sha256", "model_sha256", "mpp", "tile_px", "tile_px_level0", "tissue", "tiles", "input")
"""What the vectors of a slide depend on, by its name in ``about``."""
KNOWN = ("slide", "label", "group", "split")
"""What is known of a slide, and changes nothing in its vectors."""


def what_holds(path: Path, about: Mapping[str, Any], max_bad: float) -> dict[str, Any] | None:
    """What a file says of itself, if it has the vectors that ``about`` asks for; else None.

    max_bad   share of the tiles that may have been left out of it because they could not be read
    """
    there = read_about(path) if path.is_file() else {}
    if any(there.get(key) != about[key] for key in SAME) or there.get("left_out", 0) > max_bad * about["tiles"]:
        return None
    return there


def note_known(path: Path, there: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write into a file what is known of its slide now, where that is something else than it says (``there``).

    Raises StorageError, DataError.
    """
    if any(there.get(key) != about[key] for key in KNOWN):
        found = load_features(path)
        known = {key: about[key] for key in KNOWN}
        save_features(path, SlideFeatures(found.coords, found.features, found.about | known))
