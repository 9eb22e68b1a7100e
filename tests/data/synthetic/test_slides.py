"""Drawn slides: real pyramids, labels that depend on what they say they do, and files only where asked for."""

import csv

import numpy as np
import pytest
import tifffile
from PIL import Image

from saccade.data.open import open_source
from saccade.data.slides.pyramid_writer import write_pyramid
from saccade.data.slides.slide import open_slide
from saccade.data.slides.tiling import Tiling
from saccade.data.synthetic.slides import CLASSES, FIRST, GLASS, SECOND, Drawing, draw_slides, lay_out, read_drawing
from saccade.errors import UsageError

SMALL = Drawing(n=4, size=640, region=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_slides(SMALL, tmp_path_factory.mktemp("drawn") / "slides")


def beside(regions: np.ndarray, one: int, other: int) -> int:
    """How many regions of ``one`` touch a region of ``other``, corners included."""
    padded = np.pad(regions, 1, constant_values=GLASS)
    found = 0
    for y, x in np.argwhere(padded == one):
        near = padded[y - 1 : y + 2, x - 1 : x + 2].copy()
        near[1, 1] = GLASS
        found += bool((near == other).any())
    return found


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("number", range(8))
def test_the_label_is_the_arrangement_and_nothing_else(number, share):
    drawing = Drawing(n=8, size=4096, region=128, seed=3, share=share)
    regions = lay_out(drawing, number)
    a, b = CLASSES.index(FIRST), CLASSES.index(SECOND)
    amounts = [int((regions == kind).sum()) for kind in (a, b)]
    assert amounts[0] == amounts[1] == int(share * (regions != GLASS).sum() / 4) // 2 * 2 * 2
    neighbours = [beside(regions, a, b), beside(regions, a, a)]  # of the first kind, how many lie beside each
    if drawing.kind(number) == "mixed":
        assert neighbours[0] == amounts[0]  # every one is chequered
    else:
        assert neighbours[1] == amounts[0] and neighbours[0] < 0.8 * amounts[0]


def test_small_slides_have_two_nests_and_smaller_ones_are_refused():
    regions = lay_out(Drawing(size=640, region=64, share=0.01), 0)
    assert (regions == CLASSES.index(FIRST)).sum() == (regions == CLASSES.index(SECOND)).sum() == 4
    with pytest.raises(UsageError, match="share"):
        Drawing(share=0)
    with pytest.raises(UsageError, match="share is a number"):
        open_source("synthetic:slide?share=half&folder=nowhere")


def test_the_control_is_the_composition():
    drawing = Drawing(n=6, size=4096, label="composition")
    for number in range(6):
        regions = lay_out(drawing, number)
        a, b = ((regions == CLASSES.index(name)).sum() for name in (FIRST, SECOND))
        assert (a > 2 * b) == (drawing.kind(number) == "inflamed") and (b > 2 * a) == (drawing.kind(number) == "solid")


def test_slides_are_pyramids_with_resolution_regions_and_a_table(folder):
    slide = open_slide(folder / "slide-0000.tif")
    assert slide.size_px == (640, 640) and slide.spacing_um == (1.0, 1.0) and len(slide.downsamples) == 2
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert [row["label"] for row in rows] == ["mixed", "apart", "apart", "mixed"]
    assert len({(row["patient"], row["split"]) for row in rows}) == 2  # a patient is on one side
    regions = np.asarray(Image.open(folder / "slide-0000-regions.png"))
    tile = slide.read(320, 320, mpp=1.0, size_px=(64, 64))
    assert regions.shape == (10, 10) and regions[5, 5] != GLASS and regions[0, 0] == GLASS
    assert tile.mean() < 230 < slide.read(0, 0, mpp=1.0, size_px=(64, 64)).mean()


def test_tiles_on_the_lattice_show_one_pattern_and_the_mask_finds_the_tissue(folder):
    source = open_source(folder, tiling=Tiling(mpp=1.0, tile_px=64))
    regions = np.asarray(Image.open(folder / "slide-0001-regions.png"))
    cells = {(int(y), int(x)) for y, x in source.grid(1).cells}
    assert cells == {(int(y), int(x)) for y, x in np.argwhere(regions != GLASS)}
    assert {(r.label, r.group) for r in source.records} >= {("mixed", "patient-000"), ("apart", "patient-000")}


def test_the_same_words_give_the_same_slides(folder, tmp_path):
    again = draw_slides(Drawing(n=1, size=640, region=64), tmp_path / "again")
    one, two = (tifffile.imread(place / "slide-0000.tif") for place in (folder, again))
    assert np.array_equal(one, two)
    before = (folder / "slide-0000.tif").stat().st_mtime_ns
    draw_slides(SMALL, folder)
    assert (folder / "slide-0000.tif").stat().st_mtime_ns == before


def test_nothing_is_written_where_nobody_looks(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"60 slides of 4,096 pixels, about \d+ MiB[\s\S]*folder=slides"):
        open_source("synthetic:slide?n=60&size=4096")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="holds other drawn slides"):
        draw_slides(Drawing(n=2, size=640, region=64), folder)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        draw_slides(SMALL, tmp_path)
    with pytest.raises(UsageError, match="unknown setting"):
        read_drawing({"sides": "3"})
    with pytest.raises(UsageError, match="invalid settings of synthetic"):
        Drawing(size=300)


@pytest.mark.parametrize("size", [(700, 1111), (256, 2000), (513, 300), (100, 90)])
def test_pyramids_of_any_size_are_read_back(tmp_path, size):
    y, x = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([(y // 4) % 256, (x // 8) % 256, np.full(size, 90)], axis=-1).astype(np.uint8)
    strips = (pixels[top : top + 256] for top in range(0, size[0], 256))
    slide = open_slide(write_pyramid(tmp_path / "any.tif", size, strips, um=0.5))
    assert slide.size_px == size and slide.spacing_um == pytest.approx((0.5, 0.5), rel=1e-3)
    found = slide.read(0, 0, mpp=0.5, size_px=size).astype(int)
    assert np.abs(found - pixels.transpose(2, 0, 1)).mean() < 4
    for downsample, (rows, columns) in zip(slide.downsamples[1:], slide.reader.sizes_px[1:]):
        small = slide.reduced(0, 0, downsample, (rows - 2, columns - 2)).astype(int)
        wanted = pixels[:: round(downsample), :: round(downsample), 0][: rows - 2, : columns - 2]
        assert abs(small[2].mean() - 90) < 3 and np.abs(small[0] - wanted).mean() < 6
