"""The automatic choice of method, backbone and recipe: one table of rules, from the data, the device and the time.

A name that the user gives stays. The choice, its reason and the runner-up are printed and kept in config.yaml
(``train.chosen``). The measurements behind the rules are in docs/studies/auto.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade.base.config import override_section
from saccade.base.contracts import Source
from saccade.base.random import numpy_generator
from saccade.errors import DamagedFile
from saccade.methods.registry import card_of, method_names
from saccade.models.registry import parse
from saccade.train.data_selection import open_all
from saccade.train.settings import AUTO, DataConfig

SHORT_MINUTES = 120.0
"""On a CPU, runs up to here are short: their views overlap more and are changed less."""
EXAMINED = 256
GRID = 16
"""Images are compared with their mirror images at GRID x GRID pixels."""
DRAWS = 199
CERTAIN = 0.01


@dataclass(frozen=True)
class DataFacts:
    """What the rules look at.

    images          number of images (or volumes, or grids of vectors)
    axes            2 for images, 3 for volumes
    grid            vectors of another network instead of pixels
    upright         images and their mirror images top to bottom differ on average: up means something
    handed          likewise left to right
    device          cpu, cuda or mps
    minutes         time given; None where the length is steps or epochs
    """

    images: int
    axes: int
    grid: bool
    upright: bool
    handed: bool
    device: str
    minutes: float | None


@dataclass(frozen=True)
class Choice:
    """A name, why it was chosen, and what would come second."""

    name: str
    reason: str
    runner_up: str = ""

    def text(self, what: str) -> str:
        other = f"; runner-up: {self.runner_up}" if self.runner_up else ""
        return f"{what} {self.name}: {self.reason}{other}"


# --- the rules -----------------------------------------------------------------------------------


def choose_method(facts: DataFacts, pretrained: bool) -> Choice:
    """The pretext task."""
    if facts.grid:
        return Choice("dino", "the method HIPT uses for grids of tile vectors", "mae")
    if pretrained:
        return Choice(
            "dino", "its guard keeps pretrained weights from getting worse (docs/studies/weights.md)", "lejepa"
        )
    if facts.device == "cuda" and facts.images >= 50_000 and (facts.minutes is None or facts.minutes >= 240):
        return Choice("dino", "many images and hours on a GPU, where it is the published reference", "lejepa")
    return Choice(
        "lejepa",
        "learns most per minute with both ResNets and ViTs (docs/studies/pretext.md), without a teacher to wait for",
        "mae for a plain ViT, same_image for a ResNet",
    )


def choose_backbone(facts: DataFacts, method: str) -> Choice:
    """The network."""
    if facts.grid:
        return Choice("grid_micro", "reads grids of vectors", "grid_tiny")
    masks = card_of(method).needs_masking
    if facts.device == "cuda":
        if facts.images >= 50_000 or masks:
            return Choice("vit_small_patch16", "enough images for a transformer on a GPU", "resnet50")
        return Choice("resnet18", f"{facts.images:,} images teach convolutions more than a ViT", "vit_small_patch16")
    if masks:
        return Choice("vit_micro_patch8", f"{method} hides patches, which needs a plain ViT; small enough for a CPU")
    return Choice(
        "resnet10_w32",
        "on a CPU, convolutions learn faster from minutes than a ViT (docs/studies/pretext.md)",
        "vit_micro_patch8, which has attention maps",
    )


def choose_recipe(facts: DataFacts) -> Choice:
    """The augmentation recipe."""
    short = facts.device == "cpu" and not facts.grid and (facts.minutes is None or facts.minutes <= SHORT_MINUTES)
    ending = (",short", "; short: a CPU sees few images in the time") if short else ("", "")
    if facts.axes == 3 or facts.grid:
        return Choice("microscopy" + ending[0], "the default for volumes and grids" + ending[1])
    if facts.upright and facts.handed:
        kind, reason = "xray", "on average the images differ from their mirror images, up and down and left and right"
    elif facts.upright:
        kind, reason = "natural", "on average the images differ from those turned upside down: up means something"
    else:
        kind, reason = "microscopy", "turned and mirrored images look alike on average, so flips and turns are variety"
    return Choice(kind + ending[0], reason + ending[1])


# --- what the data say ---------------------------------------------------------------------------


def differs_from_mirror(thumbnails: np.ndarray, axis: int) -> bool:
    """Whether images differ on average from their mirror images: a sign-flip test of their mean difference.

    Parameters
    ----------
    thumbnails
        [B Y X] float, one small grey picture an image.
    axis
        1 top to bottom, 2 left to right.

    Notes
    -----
    Where orientation means nothing, an image and its mirror image are equally likely, so the sign of every difference
    is random; the squared length of the mean difference is compared with that under random signs.

    Examples
    --------
    >>> ramp = np.linspace(0, 1, 8)[None, :, None] + np.random.default_rng(0).normal(size=(64, 8, 8))
    >>> differs_from_mirror(ramp, 1), differs_from_mirror(ramp, 2)
    (True, False)
    """
    difference = (thumbnails - np.flip(thumbnails, axis)).reshape(len(thumbnails), -1)
    generator = numpy_generator(0, "mirror", axis)
    signs = generator.choice([-1.0, 1.0], size=(DRAWS, len(thumbnails)))
    observed = np.square(difference.mean(axis=0)).sum()
    random = np.square(signs @ difference / len(thumbnails)).sum(axis=1)
    return bool((1 + (random >= observed).sum()) / (1 + DRAWS) <= CERTAIN)


def _thumbnails(source: Source) -> np.ndarray:
    """[B Y X] grey pictures of up to EXAMINED images, evenly spread over the source, each of mean 0 and length 1."""
    pictures = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(EXAMINED, len(source))).astype(int)):
        try:
            pixels = source.read(int(index)).pixels.astype(np.float64).mean(axis=0)
        except DamagedFile:
            continue
        if min(pixels.shape) < GRID:
            continue
        rows, columns = (n // GRID * GRID for n in pixels.shape)
        middle = pixels[(pixels.shape[0] - rows) // 2 :][:rows, (pixels.shape[1] - columns) // 2 :][:, :columns]
        small = middle.reshape(GRID, rows // GRID, GRID, columns // GRID).mean(axis=(1, 3))
        small = small - small.mean()
        pictures.append(small / max(1e-12, float(np.linalg.norm(small))))
    return np.array(pictures).reshape(-1, GRID, GRID)


def open_named(data: str, settings: Mapping[str, Any]) -> Source:
    """The images that a run with these settings, by dotted key, reads. Raises DataError, UsageError."""
    data_settings = {key: value for key, value in settings.items() if key.startswith("data.")}
    data_config = override_section("data", DataConfig(), {"data.source": data, **data_settings})
    return open_all(data_config, str(settings.get("model.weights", "")))


def facts_of(source: Source | None, device: str, settings: Mapping[str, Any], *, orientation: bool = True) -> DataFacts:
    """What the rules look at, from a sample of the images. Raises DataError where none can be read.

    Without ``orientation``, which reads EXAMINED images, none counts as upright or handed.
    """
    minutes = None if settings.get("train.minutes") is None else float(settings["train.minutes"])
    if source is None:
        axes = int(settings.get("data.axes") or 2)
        return DataFacts(1000, axes, grid=False, upright=False, handed=False, device=device, minutes=minutes)
    grid = bool(source.read(0).grid)
    upright = handed = False
    if orientation and source.axes == 2 and not grid:
        thumbnails = _thumbnails(source)
        if len(thumbnails) >= GRID:
            upright, handed = differs_from_mirror(thumbnails, 1), differs_from_mirror(thumbnails, 2)
    return DataFacts(
        images=len(source),
        axes=source.axes,
        grid=grid,
        upright=upright,
        handed=handed,
        device=device,
        minutes=minutes,
    )


# --- the choice ----------------------------------------------------------------------------------


def method_of_settings(settings: Mapping[str, Any]) -> str | None:
    """The method whose section a setting names (``dino.out_dim``), if any: only that method can use it."""
    sections = {str(key).partition(".")[0] for key in settings if "." in str(key)}
    return next((name for name in method_names() if name in sections), None)


@dataclass(frozen=True)
class Names:
    """What a run is made of; ``chosen`` says what was decided here and why, empty where nothing was."""

    method: str
    backbone: str | None
    recipe: str
    chosen: str = ""

    @property
    def open(self) -> bool:
        return AUTO in (self.method, self.backbone, self.recipe) or self.backbone is None

    def with_settings(self, settings: Mapping[str, Any]) -> Names:
        """The names that settings by dotted key give instead of ``auto``."""
        method = (method_of_settings(settings) or AUTO) if self.method == AUTO else self.method
        backbone = self.backbone if self.backbone not in (None, AUTO) else settings.get("model.backbone")
        return dataclasses.replace(self, method=method, backbone=backbone)


def choose(names: Names, source: Source | None, device: str, settings: Mapping[str, Any]) -> Names:
    """Replace every ``auto`` by a name.

    Parameters
    ----------
    names
        Method, backbone (None: auto) and recipe as the user gave them.
    source
        A sample of its images is looked at; None: some colour images, or volumes for ``data.axes`` 3.
    device
        Type of the device: cpu, cuda or mps.
    settings
        Settings by dotted key that the user gave; they are considered (``train.minutes``), and never overruled.

    Raises
    ------
    UsageError, DataError
    """
    names = names.with_settings(settings)
    if not names.open:
        return names
    facts = facts_of(source, device, settings, orientation=names.recipe == AUTO)
    choices: list[str] = []
    if names.method == AUTO:
        choice = choose_method(facts, bool(settings.get("model.weights")))
        choices.append(choice.text("method"))
        names = dataclasses.replace(names, method=choice.name)
    if names.backbone is None:
        choice = choose_backbone(facts, names.method)
        choices.append(choice.text("backbone"))
        names = dataclasses.replace(names, backbone=choice.name)
    if names.recipe == AUTO:
        choice = choose_recipe(dataclasses.replace(facts, grid=parse(str(names.backbone)).capabilities.reads_grids))
        choices.append(choice.text("recipe"))
        names = dataclasses.replace(names, recipe=choice.name)
    return dataclasses.replace(names, chosen="\n".join(choices))
