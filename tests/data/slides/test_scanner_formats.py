"""Formats of scanners: each is named, read in place, tiled, and never shows its label or macro picture."""

import shutil

import numpy as np
import pytest

from made_slides import on_glass, texture, write_dicom, write_slide
from saccade import api
from saccade.data.open import open_source
from saccade.data.slides.slide import Slide, open_slide
from saccade.data.slides.tiff_reader import TiffReader
from saccade.data.slides.tiling import Tiling
from saccade.errors import DamagedFile, DataError
from slide_formats import SECRET, halved, secret, write_bif, write_mrxs, write_scn, write_svs

UM = 0.5
AT, GLASS = (202, 98), (802, 1204)  # of the SCN: where (x, y) on how much (rows, columns) glass
VENDORS = {"a.svs": "aperio", "b.bif": "ventana", "c.mrxs": "mirax", "d.scn": "leica", "e.dcm": "dicom"}
VENDORS |= {"f.tif": "generic-tiff"}
TILING = Tiling(mpp=UM, tile_px=64)


@pytest.fixture(scope="module")
def pixels():
    return on_glass(texture(512, 768, grain=2.0), 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixels):
    """One slide of every kind, all of the same picture; a corner of it was never scanned."""
    place = tmp_path_factory.mktemp("scanners")
    pixels[:128, :128] = 255
    write_svs(place / "a.svs", pixels, um=UM)
    write_bif(place / "b.bif", pixels, um=UM)
    write_mrxs(place / "c.mrxs", pixels, um=UM)
    write_scn(place / "d.scn", pixels, um=UM, at=AT, glass=GLASS)
    write_dicom(place / "e.dcm", pixels, um=UM)
    write_dicom(place / "e-half.dcm", halved(pixels), um=2 * UM)
    write_dicom(place / "e-label.dcm", secret(128, 128), um=UM, kind="LABEL")
    write_slide(place / "f.tif", pixels, level_px=((256, 384),))
    return place


def origin(name: str) -> tuple[int, int]:
    """(x, y) of the picture in level 0."""
    return AT if name.endswith(".scn") else (0, 0)


@pytest.mark.parametrize("name", VENDORS)
def test_a_format_is_read_where_its_pixels_are(folder, pixels, name):
    slide = open_slide(folder / name)
    assert (slide.vendor, slide.spacing_um) == (VENDORS[name], (UM, UM))
    assert slide.size_px == (GLASS if name == "d.scn" else (512, 768))
    assert slide.downsamples == (1.0, 2.0)
    left, top = origin(name)
    for x, y in ((150, 130), (610, 346)):
        found = slide.read(x + left, y + top, mpp=UM, size_px=(80, 90)).astype(int)
        assert np.abs(found - pixels[y : y + 80, x : x + 90].transpose(2, 0, 1)).mean() < 2
        half = slide.read(x + left, y + top, mpp=2 * UM, size_px=(40, 45)).astype(int)
        wanted = pixels[y : y + 80, x : x + 90].reshape(40, 2, 45, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        assert np.abs(half - wanted).mean() < 4
    assert (slide.read(left, top, mpp=UM, size_px=(100, 100)) >= 250).all()  # the corner


@pytest.mark.parametrize("name", VENDORS)
def test_no_format_shows_its_label_or_macro(folder, name):
    slide = open_slide(folder / name)
    if name != "f.tif":  # the bait is there: OpenSlide would hand it out
        aside = slide.reader.inner._slide.associated_images
        assert any(np.abs(np.asarray(one)[5, 5, :3].astype(int) - SECRET).max() < 9 for one in aside.values())
    for level, (rows, columns) in enumerate(slide.reader.sizes_px):
        assert not shows_secret(slide.reader.read(level, 0, 0, (rows, columns), 255).pixels)
    assert not shows_secret(slide.thumbnail(400).transpose(1, 2, 0))


def shows_secret(seen: np.ndarray) -> bool:
    return bool((np.abs(seen.astype(int) - SECRET).max(axis=-1) < 30).any())


@pytest.mark.parametrize("name", ["a.svs", "b.bif", "d.scn", "dark.scn"])
def test_without_openslide_neither(folder, tmp_path, pixels, name):
    """The macro picture of an SCN is the first of the file, and a fluorescence SCN is none for OpenSlide."""
    path = folder / name
    if name == "dark.scn":
        path = write_scn(tmp_path / name, pixels, um=UM, at=AT, glass=GLASS, light="fluorescence")
        assert open_slide(path).vendor == "tiff"
    slide = Slide(path, TiffReader(path))
    assert (slide.size_px, slide.spacing_um, slide.downsamples) == ((512, 768), (UM, UM), (1, 2))
    assert not shows_secret(slide.thumbnail(768).transpose(1, 2, 0))
    found = slide.read(150, 130, mpp=UM, size_px=(80, 90)).astype(int)
    assert np.abs(found - pixels[130:210, 150:240].transpose(2, 0, 1)).mean() < 2
    assert ("a strip at their edges appears twice" in slide.note) == (name == "b.bif")


def test_an_scn_of_nothing_but_its_macro_is_no_slide(tmp_path, pixels):
    path = write_scn(tmp_path / "only.scn", pixels, um=UM, at=(0, 0), glass=pixels.shape[:2])
    with pytest.raises(DamagedFile, match=r"only\.scn.*no image in this TIFF"):
        open_slide(path)


def test_a_folder_of_all_formats_is_shown_and_tiled(folder):
    """The folder of the MIRAX slide is part of it: no file of it is a slide, or beside the slides."""
    found = api.show(folder, tiling=TILING)
    assert {one.id: one.vendor for one in found.slides} == VENDORS
    assert not found.unreadable and not found.not_taken and "not taken" not in found.text()
    tiles = {one.id: one.tiles for one in found.slides}
    assert all(40 < count < 60 for count in tiles.values()), tiles  # 54 whole ones in 640 x 384, and the rim
    source = open_source(folder, tiling=TILING)
    for number, one in enumerate(source.entries):
        left, top = origin(one.record.id)
        inside = source.grid(number).coords - (left, top)
        assert (inside >= 0).all() and (inside < (768, 512)).all()
        assert not (inside + 64 <= 128).all(axis=1).any()  # no tile where nothing was scanned


def test_every_file_of_a_mirax_slide_is_in_its_hash(folder, tmp_path):
    shutil.copytree(folder / "c", tmp_path / "c")
    path = tmp_path / "c.mrxs"
    path.write_bytes((folder / "c.mrxs").read_bytes())
    first = open_slide(path).content_hash()
    assert first == open_slide(folder / "c.mrxs").content_hash()
    pixels = tmp_path / "c" / "Data0000.dat"
    data = bytearray(pixels.read_bytes())
    data[-3] ^= 1
    pixels.write_bytes(bytes(data))
    assert open_slide(path).content_hash() != first
    assert open_source(path, tiling=TILING).hashes != [first]


def test_a_mirax_slide_without_its_folder_is_told_what_is_missing(folder, tmp_path):
    shutil.copy(folder / "c.mrxs", tmp_path)
    with pytest.raises(DamagedFile, match=r"c\.mrxs: its folder c is missing.*\n.*copy"):
        open_source(tmp_path / "c.mrxs")
    shutil.copytree(folder / "c", tmp_path / "c")
    (tmp_path / "c" / "Slidedat.ini").unlink()
    with pytest.raises(DataError, match=r"c\.mrxs: Slidedat\.ini of its folder c is missing"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"belongs to one MIRAX slide\n.*c\.mrxs beside it"):
        open_source(folder / "c")


def test_pictures_that_a_vms_names_are_parts_of_it(folder, tmp_path):
    text = "[Virtual Microscope Specimen]\nImageFile=a.jpg\nMacroImage=../b.jpg\nMapFile=absent.jpg\n"
    (tmp_path / "one.vms").write_text(text)
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    (tmp_path / "notes.txt").write_text("of the technician")
    shutil.copy(folder / "f.tif", tmp_path)
    found = open_source(tmp_path, tiling=TILING)
    assert found.beside == ["notes.txt"] and [name for name, _ in found.unreadable] == ["one.vms"]
