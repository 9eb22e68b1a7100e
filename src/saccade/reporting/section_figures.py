"""Pictures of a run folder, embedded in its report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from saccade.reporting.html import Html, h, missing
from saccade.reporting.run_files import RunFiles
from saccade.viz.overlays import data_uri


def pictures(run: RunFiles, kinds: Sequence[str]) -> list[Html]:
    """The figures of these kinds, embedded; unreadable ones are named instead."""
    return [figure(run, f) for f in run.figures if f.get("kind") in kinds]


def figure(run: RunFiles, entry: Mapping[str, Any]) -> Html:
    """One picture of ``figures/``: its ``file``, ``title``, ``caption`` and ``alt``."""
    name = str(entry.get("file") or "")
    folder = (run.folder / "figures").resolve()
    path = (folder / name).resolve()
    # index.json is untrusted: it must not pull other files into a page that is shared.
    inside = path.is_relative_to(folder) and path.suffix in (".png", ".svg")
    if not (inside and path.is_file()):
        return missing(f"The figure {name or 'without a name'} is not in the run folder.")
    data = path.read_bytes()
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    attributes = {"src": data_uri(data, kind), "alt": str(entry.get("alt") or entry.get("title") or name)}
    if kind == "image/png":
        try:
            with Image.open(io.BytesIO(data)) as picture:
                attributes |= {"width": str(picture.width), "height": str(picture.height)}
        except OSError:
            return missing(f"The figure {name} is damaged.")
    caption = h("figcaption", None, h("strong", None, entry.get("title") or ""), " ", entry.get("caption") or "")
    return h("figure", None, h("div", {"class": "scroll"}, h("img", attributes)), caption)
