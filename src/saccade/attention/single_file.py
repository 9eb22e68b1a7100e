"""The explorer as one HTML file: chosen images with the attention of every query, for supplements and lectures.

The page is drawn by the same modules as ``saccade view``. Weights are stored in one byte each; the page states the
measured error. The same network with random weights is included for comparison.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saccade.attention.explorer import Explorer, ModelView, ViewRequest
from saccade.base import config, run_folder
from saccade.base.contracts import Record, Sample
from saccade.base.files import check_writable, write_text
from saccade.data.images.decode import decode
from saccade.data.open import open_data
from saccade.data.slides.detect import is_slide
from saccade.errors import DataError, UsageError
from saccade.reporting.standalone import block, kept_layers, packed, standalone
from saccade.viz.quantised import Quantised, lost, quantise

USUAL_IMAGES, MOST_IMAGES = 4, 24
ENTRY, INSTEAD = "standalone_attention.js", {"server_api.js": "embedded_api.js"}


@dataclass(frozen=True)
class PageImage:
    """One image of the page: name, class if known, and pixels [C Y X]."""

    name: str
    label: str | None
    pixels: np.ndarray


def write_interactive(
    run: str | Path, path: str | Path, images: Sequence[str | Path] = (), size_px: int | None = None
) -> tuple[Path, str]:
    """Write an interactive page of a run as one HTML file.

    Parameters
    ----------
    run : str or Path
        The run folder.
    path : str or Path
        FILE.html.
    images : sequence of path
        Image files; empty takes some of the run's own data, classes in turn.
    size_px : int, optional
        Shorter side of the network's input; None is the size of the model's training.

    Returns
    -------
    tuple
        The path, and a note on what the page holds and how exact its numbers are.

    Raises
    ------
    UsageError
        Not a run, too many images, or not even one layer fits into a page.
    """
    run, path = Path(run), Path(path)
    run_folder.require_run(run)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError("an interactive page is an HTML file", got=path.name, hint="name it FILE.html")
    check_writable(path)
    if len(images) > MOST_IMAGES:
        raise UsageError("too many images for one page", got=len(images), expected=f"at most {MOST_IMAGES}")
    chosen = [_file(Path(image)) for image in images] or _from_data(run)
    data, note = _data(run, chosen, size_px)
    write_text(path, standalone(f"{run.resolve().name}: attention explorer", ENTRY, data, instead=INSTEAD))
    return path, note


def _file(path: Path) -> PageImage:
    if not path.is_file():
        raise DataError("image file not found", got=path)
    if is_slide(path, asked=False):
        raise UsageError(
            "a whole-slide image cannot go into this page",
            got=path,
            hint="give tiles as PNG, or leave out --images to take some of the run; saccade view shows whole slides",
        )
    return PageImage(path.name, None, decode(path.read_bytes(), str(path)))


def _from_data(run: Path) -> list[PageImage]:
    """Some images of the run's data, of the test part if there is one, classes in turn."""
    source = open_data(config.load(run / "config.yaml")["data"])
    numbered = sorted(enumerate(source.records), key=lambda item: item[1].split != "test")
    count_by_label: dict[str | None, int] = {}
    turn = []
    for index, record in numbered:
        turn.append((record.split != "test", count_by_label.setdefault(record.label, 0), index))
        count_by_label[record.label] += 1
    images = []
    for _, _, index in sorted(turn)[:USUAL_IMAGES]:
        record = source.records[index]
        images.append(PageImage(record.id, record.label, source.read(index).pixels))
    return images


def _data(run: Path, chosen: Sequence[PageImage], size_px: int | None) -> tuple[dict[str, Any], str]:
    """The data of the page, and its note."""
    explorer, name = Explorer(), run.resolve().name
    models = [{"id": "trained", "name": name}, {"id": "random", "name": f"{name}, random weights"}]
    looks: dict[str, Any] = {}
    losses: list[Quantised] = []
    left_out = ""
    for number, image in enumerate(chosen):
        if image.pixels.ndim != 3:
            raise DataError(
                f"{image.name} is not an image",
                got=f"shape {list(image.pixels.shape)}",
                hint="one-file pages hold images; saccade view shows volumes",
            )
        for model in models:
            request = ViewRequest(str(run), f"{number}", model["id"] == "random", size_px)
            view = explorer.view(request, Sample(image.pixels, Record(image.name)))
            layers = _layers(view, 2 * len(chosen))
            entry, lossy = _entry(view, layers)
            looks[f"{model['id']}/{number}"] = entry
            losses += lossy
            if view.qkv is not None and len(layers) < view.qkv.depth:
                left_out = f" The page holds {len(layers)} of {view.qkv.depth} layers."
    note = "Similarities are rounded to 0.004."
    if losses:
        note = lost(losses)
    pictures = [
        {"id": str(i), "name": chosen_image.name, "label": chosen_image.label} for i, chosen_image in enumerate(chosen)
    ]
    return {"models": models, "images": pictures, "looks": looks, "note": note + left_out}, note + left_out


def _layers(view: ModelView, looks: int) -> list[int]:
    if view.qkv is None:
        return [0]
    qkv = view.qkv
    layer_bytes = qkv.heads * qkv.tokens**2
    return kept_layers(qkv.depth, layer_bytes * looks, qkv.depth - 1)


def _entry(view: ModelView, layers: Sequence[int]) -> tuple[dict[str, Any], list[Quantised]]:
    """The page's entry of one image and one network."""
    about = view.about()
    entry: dict[str, Any] = {"about": about, "picture": _encoded(view.picture)}
    if view.qkv is None:
        count = about["grid"][0] * about["grid"][1] + 1
        signed = (view.similarity(0, count)[0] * 127).round() + 128
        return entry | {"width": count, "signed": packed(signed.astype(np.uint8))}, []
    qkv = view.qkv
    about |= {"layers": list(layers), "depth": len(layers), "whole": qkv.depth}
    quantised = [quantise(qkv.rows(layer, 0, qkv.tokens)) for layer in layers]
    return entry | {"width": qkv.tokens, "layers": [block(layer_rows) for layer_rows in quantised]}, quantised


def _encoded(picture: np.ndarray) -> str:
    """uint8 [3 Y X] as a PNG in base64."""
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
