"""The explorer as one file: chosen images with the attention of every query, for supplements and lectures.

The page is drawn by the same modules as in ``saccade view``. Weights are kept in one byte each; what that loses is
measured and said on the page. Beside the trained network stands the same one with random weights.
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

from saccade.attention.explorer import Explorer, Look, Seen
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
ENTRY, INSTEAD = "standalone_explorer.js", {"ask.js": "embedded_ask.js"}


@dataclass(frozen=True)
class Chosen:
    """One image of the page: its name, its class where it has one, and its pixels [C Y X]."""

    name: str
    label: str | None
    pixels: np.ndarray


def write_interactive(
    run: str | Path, path: str | Path, images: Sequence[str | Path] = (), size_px: int | None = None
) -> tuple[Path, str]:
    """Write the page to ``path``; returns it, and in words what it holds and how exactly.

    images   files; none takes a few of the run's own data, one a class
    size_px  shorter side they are shown at; None is the model's own
    Raises UsageError when ``run`` is no run, when there are too many images, or when not even one layer fits.
    """
    run, path = Path(run), Path(path)
    run_folder.require_run(run)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError("an interactive page is HTML", got=path.name, hint="name it FILE.html")
    check_writable(path)
    if len(images) > MOST_IMAGES:
        raise UsageError("too many images for one page", got=len(images), expected=f"at most {MOST_IMAGES}")
    chosen = [_file(Path(image)) for image in images] or _from_data(run)
    data, note = _data(run, chosen, size_px)
    write_text(path, standalone(f"{run.resolve().name}: where does this patch look?", ENTRY, data, instead=INSTEAD))
    return path, note


def _file(path: Path) -> Chosen:
    if not path.is_file():
        raise DataError("image file not found", got=path)
    if is_slide(path, asked=False):
        raise UsageError(
            "a slide holds many tiles and is no image for this page",
            got=path,
            hint="give tiles as PNG, or leave out --images to take some of the run's; saccade view shows whole slides",
        )
    return Chosen(path.name, None, decode(path.read_bytes(), str(path)))


def _from_data(run: Path) -> list[Chosen]:
    """Some images of the run's data: of the test part where there is one, a class in turn."""
    source = open_data(config.load(run / "config.yaml")["data"])
    numbered = sorted(enumerate(source.records), key=lambda one: one[1].split != "test")
    seen: dict[str | None, int] = {}
    turn = []
    for index, record in numbered:
        turn.append((record.split != "test", seen.setdefault(record.label, 0), index))
        seen[record.label] += 1
    found = []
    for _, _, index in sorted(turn)[:USUAL_IMAGES]:
        record = source.records[index]
        found.append(Chosen(record.id, record.label, source.read(index).pixels))
    return found


def _data(run: Path, chosen: Sequence[Chosen], size_px: int | None) -> tuple[dict[str, Any], str]:
    """Everything the page holds, and what is said of it."""
    explorer, name = Explorer(), run.resolve().name
    models = [{"id": "trained", "name": name}, {"id": "random", "name": f"{name}, random weights"}]
    looks: dict[str, Any] = {}
    losses: list[Quantised] = []
    left_out = ""
    for number, image in enumerate(chosen):
        if image.pixels.ndim != 3:
            raise DataError(
                f"{image.name} is no image",
                got=f"shape {list(image.pixels.shape)}",
                hint="pages of one file hold images; volumes are shown by saccade view",
            )
        for model in models:
            look = Look(str(run), f"{number}", model["id"] == "random", size_px)
            seen = explorer.see(look, Sample(image.pixels, Record(image.name)))
            layers = _layers(seen, 2 * len(chosen))
            entry, lossy = _look(seen, layers)
            looks[f"{model['id']}/{number}"] = entry
            losses += lossy
            if seen.compared is not None and len(layers) < seen.compared.depth:
                left_out = f" Kept are {len(layers)} of {seen.compared.depth} layers."
    note = "Similarities are kept to 0.004."
    if losses:
        note = lost(losses)
    pictures = [{"id": str(i), "name": one.name, "label": one.label} for i, one in enumerate(chosen)]
    return {"models": models, "images": pictures, "looks": looks, "note": note + left_out}, note + left_out


def _layers(seen: Seen, looks: int) -> list[int]:
    if seen.compared is None:
        return [0]
    compared = seen.compared
    layer_bytes = compared.heads * compared.tokens**2
    return kept_layers(compared.depth, layer_bytes * looks, compared.depth - 1)


def _look(seen: Seen, layers: Sequence[int]) -> tuple[dict[str, Any], list[Quantised]]:
    """What the page needs of one image seen by one network."""
    about = seen.about()
    entry: dict[str, Any] = {"about": about, "picture": _encoded(seen.picture)}
    if seen.compared is None:
        count = about["grid"][0] * about["grid"][1] + 1
        signed = (seen.similarity(0, count)[0] * 127).round() + 128
        return entry | {"width": count, "signed": packed(signed.astype(np.uint8))}, []
    compared = seen.compared
    about |= {"layers": list(layers), "depth": len(layers), "whole": compared.depth}
    kept = [quantise(compared.rows(layer, 0, compared.tokens)) for layer in layers]
    return entry | {"width": compared.tokens, "layers": [block(one) for one in kept]}, kept


def _encoded(picture: np.ndarray) -> str:
    """uint8 [3 Y X] as a PNG in base64."""
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
