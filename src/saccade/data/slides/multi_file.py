"""Slides of several files: what lies beside the file that is opened, and belongs to it.

A MIRAX slide is a small ``.mrxs`` and a folder of the same name with the pixels. A Hamamatsu ``.vms`` or ``.vmu`` is a
text that names its pictures. (A DICOM slide is a series: dicom_reader.)
"""

from __future__ import annotations

from pathlib import Path

from saccade.data.formats import by_name
from saccade.data.slides.reader import Reader
from saccade.data.slides.readers import open_scanner_file
from saccade.errors import DamagedFile, DataError

MIRAX_TEXT = "Slidedat.ini"
LONGEST_TEXT = 2**20  # bytes; a Hamamatsu index is a few kilobytes


def parts_of(slide: Path) -> list[Path]:
    """The existing other files of a slide, sorted; empty for a slide of one file."""
    card = by_name(slide.name, "slide")
    list_parts = card.load_parts() if card else None
    return sorted(list_parts(slide)) if list_parts else []


def mirax_parts(slide: Path) -> list[Path]:
    """The files in the folder of a MIRAX slide."""
    folder = slide.with_suffix("")
    return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []


def hamamatsu_parts(slide: Path) -> list[Path]:
    """The files that the text of a Hamamatsu slide names and that lie beside it."""
    if not slide.is_file() or slide.stat().st_size > LONGEST_TEXT:
        return []
    lines = slide.read_text("utf-8", "replace").splitlines()
    names = {line.partition("=")[2].strip() for line in lines if "=" in line}
    beside = (slide.parent / name for name in names if name and Path(name).name == name)
    return [file for file in beside if file.is_file()]


def open_mirax(slide: Path) -> Reader:
    """A MIRAX slide. Raises DamagedFile where its folder is missing: OpenSlide does not say what is missing."""
    folder = slide.with_suffix("")
    if not (folder / MIRAX_TEXT).is_file():
        missing = f"its folder {folder.name}" if not folder.is_dir() else f"{MIRAX_TEXT} of its folder {folder.name}"
        raise DamagedFile(
            f"{slide}: {missing} is missing; a MIRAX slide is a file and a folder of the same name",
            hint="copy both: the pixels are in the folder",
        )
    return open_scanner_file(slide)


def refuse_part(folder: Path) -> None:
    """Raises DataError for the folder of a MIRAX slide, where the slide is meant."""
    if (folder / MIRAX_TEXT).is_file():
        raise DataError(
            f"{folder}: the folder that belongs to one MIRAX slide",
            hint=f"name the slide, {folder.name}.mrxs beside it, or the folder that both lie in",
        )
