"""Slides of several files: what lies beside the file that is opened, and belongs to it.

A MIRAX slide is a small ``.mrxs`` and a folder of the same name with the pixels. A Hamamatsu ``.vms`` or ``.vmu`` is a
text that names its pictures. (A DICOM slide is a series: dicom.)
"""

from __future__ import annotations

from pathlib import Path

from saccade.errors import DamagedFile, DataError

MIRAX, HAMAMATSU = ".mrxs", (".vms", ".vmu")
MIRAX_TEXT = "Slidedat.ini"
LONGEST_TEXT = 2**20


def parts_of(slide: Path) -> list[Path]:
    """The other files of a slide that are there, sorted; none for a slide in one file."""
    kind = slide.suffix.lower()
    if kind == MIRAX and slide.with_suffix("").is_dir():
        return sorted(file for file in slide.with_suffix("").iterdir() if file.is_file())
    if kind in HAMAMATSU and slide.is_file() and slide.stat().st_size <= LONGEST_TEXT:
        lines = slide.read_text("utf-8", "replace").splitlines()
        names = {line.partition("=")[2].strip() for line in lines if "=" in line}
        beside = (slide.parent / name for name in names if name and Path(name).name == name)
        return sorted(file for file in beside if file.is_file())
    return []


def check_parts(slide: Path) -> None:
    """Raises DamagedFile for a MIRAX slide without its folder: OpenSlide does not say what is missing."""
    folder = slide.with_suffix("")
    if slide.suffix.lower() == MIRAX and not (folder / MIRAX_TEXT).is_file():
        missing = f"its folder {folder.name}" if not folder.is_dir() else f"{MIRAX_TEXT} of its folder {folder.name}"
        raise DamagedFile(
            f"{slide}: {missing} is missing; a MIRAX slide is a file and a folder of the same name",
            hint="copy both: the pixels are in the folder",
        )


def refuse_part(folder: Path) -> None:
    """Raises DataError for the folder of a MIRAX slide, where the slide is meant."""
    if (folder / MIRAX_TEXT).is_file():
        raise DataError(
            f"{folder}: the folder that belongs to one MIRAX slide",
            hint=f"name the slide, {folder.name}{MIRAX} beside it, or the folder that both lie in",
        )
