"""Tissue, pen marks, focus and tiles: on slides made so that the answer is known, and on the real ones."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from made_slides import on_glass, texture, with_holes, write_slide
from saccade import api
from saccade.base.run_folder import write_json
from saccade.data.audit.slides import SlideAudit, describe_slides, slide_sheet
from saccade.data.slides.slide import Slide, open_slide
from saccade.data.slides.tiff_reader import TiffReader
from saccade.data.slides.tiling import Tiling, tile_grid
from saccade.data.slides.tissue_mask import find_tissue, otsu, pen_marks, sharpness
from saccade.errors import DamagedFile, DataError, TooManyDamaged, UsageError
from saccade.reporting.write import write_report


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Tissue from 100 to 700, its right half out of focus, a green stroke across glass and tissue."""
    both = texture(800, 1200).astype(float) + texture(800, 1200, seed=1, grain=8.0)
    pixels = on_glass((both / 2).astype(np.uint8), 100)
    pixels[100:700, 650:1100] = np.stack(
        [gaussian_filter(pixels[100:700, 650:1100, c].astype(float), 7) for c in range(3)], axis=-1
    )
    pixels[300:330, 20:400] = (40, 150, 60)
    return open_slide(write_slide(tmp_path_factory.mktemp("mask") / "marked.tif", pixels, level_px=((400, 600),)))


def test_tissue_pen_and_focus_are_told_apart(marked):
    found = find_tissue(marked)
    down, across = found.downsample
    rows, columns = np.indices(found.tissue.shape)
    y, x = (rows + 0.5) * down, (columns + 0.5) * across
    truth = (y > 100) & (y < 700) & (x > 100) & (x < 1100)
    assert found.mode == "bright" and (found.tissue == truth).mean() > 0.96
    stroke = (y > 303) & (y < 327) & (x > 30) & (x < 390)
    assert found.pen[stroke].mean() > 0.95 and found.pen[truth & (abs(y - 315) > 40)].mean() == 0
    # Where the cut edge of this drawing, which is sharp, is not looked at.
    soft = (x > 830) & (x < 970) & (y > 210) & (y < 590)
    sharp = truth & (x < 560) & ~found.pen
    assert found.blur[soft].mean() > 0.8 and found.blur[sharp].mean() < 0.1
    shares = found.fractions()
    assert shares["tissue"] == pytest.approx(600 * 1000 / (800 * 1200), abs=0.03) and shares["blur"] > 0.2


def test_shares_of_rectangles_are_exact_at_fractions(marked):
    found = find_tissue(marked)
    whole = found.tissue_fraction(np.array([0]), np.array([0]), 1200, 800)[0]
    assert whole == pytest.approx(found.usable.mean(), abs=1e-9)
    halves = found.tissue_fraction(np.array([0.0, 600.0]), np.array([0, 0]), 600, 800)
    assert halves.mean() == pytest.approx(whole, abs=1e-9)
    beyond = found.tissue_fraction(np.array([1100]), np.array([0]), 200, 800)[0]  # half of it lies outside
    assert beyond == pytest.approx(found.tissue_fraction(np.array([1100]), np.array([0]), 100, 800)[0] / 2, abs=1e-9)


def test_tiles_lie_on_one_lattice_and_hold_tissue(marked):
    grid = tile_grid(marked, mpp=0.6, tile_px=64)
    assert grid.step_px == pytest.approx((76.8, 76.8)) and grid.shape == (11, 16)
    assert (grid.coords == np.rint(grid.cells[:, ::-1] * 76.8)).all() and grid.coords.dtype == np.int64
    assert grid.tissue.min() >= 0.5 and (np.diff(grid.cells[:, 0] * 100 + grid.cells[:, 1]) > 0).all()
    again = tile_grid(marked, mpp=0.6, tile_px=64)
    assert np.array_equal(grid.coords, again.coords)
    assert len(tile_grid(marked, mpp=0.6, tile_px=64, min_tissue=0)) == 11 * 16
    assert len(tile_grid(marked, mpp=0.6, tile_px=64, min_tissue=0.9)) < len(grid)


def test_fluorescence_is_seen_as_dark(tmp_path):
    rng = np.random.default_rng(0)
    glow = gaussian_filter(rng.random((600, 800)), 1) * 20 + 6
    pixels = np.full((600, 800, 3), 2, np.uint8)
    pixels[100:500, 150:650, 0] = glow[100:500, 150:650]
    pixels[250:260, 300:310, 0] = 250
    slide = open_slide(write_slide(tmp_path / "dark.tif", pixels, level_px=((300, 400),)))
    found = find_tissue(slide)
    assert slide.mode == found.mode == "dark" and slide.background == 0
    assert found.fractions()["tissue"] == pytest.approx(400 * 500 / (600 * 800), abs=0.05)
    assert not found.pen.any() and slide.read(-50, -50, mpp=0.5, size_px=(40, 40)).max() == 0


TAGS = {"tile": (128, 128), "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 255, np.uint8)], axis=2)


@pytest.mark.parametrize(
    ("name", "stored", "tags"),
    [
        ("16 bits", lambda p: p.astype(np.uint16) * 257, {"photometric": "rgb"}),
        ("12 of 16 bits", lambda p: p.astype(np.uint16) * 16, {"photometric": "rgb"}),
        ("opaque", with_alpha, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ("opaque, premultiplied", with_alpha, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        ("grey", lambda p: p.mean(axis=2).astype(np.uint8), {"photometric": "minisblack"}),
        ("grey, 16 bits", lambda p: (p.mean(axis=2) * 257).astype(np.uint16), {"photometric": "minisblack"}),
    ],
    ids=lambda value: value.replace(",", "").replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_bright_slide_has_its_tissue_however_it_is_stored(tmp_path, name, stored, tags):
    pixels = on_glass(texture(700, 900), 150)
    plain = open_slide(write_slide(tmp_path / "plain.tif", pixels))
    wanted = tile_grid(plain, mpp=0.5, tile_px=64)
    path = tmp_path / "other.tif"
    tifffile.imwrite(path, stored(pixels), **tags, **TAGS)
    for slide in (open_slide(path), Slide(path, TiffReader(path))):
        found = find_tissue(slide)
        assert slide.mode == "bright" and len(slide.read(0, 0, mpp=0.5, size_px=(8, 8))) in (1, 3)
        assert (found.tissue == find_tissue(plain).tissue).mean() > 0.98, name
        assert np.array_equal(tile_grid(slide, mpp=0.5, tile_px=64).cells, wanted.cells), name
        beyond = slide.eight_bits(slide.read(890, 690, mpp=0.5, size_px=(40, 40)))
        assert beyond[:, 20:, 20:].min() > 235  # what lies outside is as white as the glass


def test_a_grey_slide_of_glass_has_no_tissue_and_one_full_of_it_is_not_cut_in_half(tmp_path):
    rng = np.random.default_rng(0)
    glass = (190 + rng.normal(0, 2, (600, 600))).astype(np.uint8)
    full = texture(600, 600).mean(axis=2).astype(np.uint8)
    for name, pixels, low, high in (("glass", glass, 0, 0.001), ("full", full, 0.95, 1)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="minisblack", **TAGS)
        assert low <= find_tissue(open_slide(tmp_path / f"{name}.tif")).fractions()["tissue"] <= high


def test_a_fourth_colour_that_nothing_explains_is_an_error_that_names_the_file(tmp_path):
    pixels = with_alpha(on_glass(texture(400, 400), 100)).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "four.tif", pixels, photometric="rgb", extrasamples=["unspecified"], **TAGS)
    with pytest.raises(DataError, match=r"four\.tif: bright, with 4 channels.*save it with three"):
        find_tissue(open_slide(tmp_path / "four.tif"))
    with pytest.raises(DataError, match=r"four\.tif: bright, with 4 channels"):
        api.open_source(tmp_path / "four.tif", tiling=Tiling(tile_px=64))
    write_slide(tmp_path / "good.tif", on_glass(texture(400, 400), 100))
    source = api.open_source(tmp_path, tiling=Tiling(tile_px=64))
    assert [name for name, _ in source.unreadable] == ["four.tif"] and "four.tif" not in source.unreadable[0][1]


def test_channels_of_fluorescence_are_dark_also_where_all_of_them_glow(tmp_path):
    rng = np.random.default_rng(0)
    planes = (rng.random((5, 400, 400)) * 20_000 + 30_000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "five.ome.tif", planes, tile=(128, 128), metadata={"axes": "CYX"})
    slide = open_slide(tmp_path / "five.ome.tif")
    assert slide.mode == find_tissue(slide).mode == "dark" and slide.background == 0


def test_a_slide_full_of_tissue_is_not_cut_in_half(tmp_path):
    slide = open_slide(write_slide(tmp_path / "full.tif", texture(600, 600), level_px=((300, 300),)))
    assert find_tissue(slide).fractions()["tissue"] > 0.95


def test_damage_of_the_finest_level_alone_is_said(tmp_path):
    """What a small picture of the slide does not show: its coarser level is whole."""
    whole = write_slide(tmp_path / "whole.tif", texture(2048, 2048), um=1.0, level_px=((1024, 1024),))
    holed = with_holes(whole, tmp_path / "holed.tif", tuple(range(128)))
    assert not find_tissue(open_slide(holed)).hidden
    source = api.open_source(holed, tiling=Tiling(mpp=1.0, tile_px=64))
    assert re.fullmatch(r"\d+ of the regions sampled for focus cannot be read", source.tilings[0].note)
    assert api.open_source(whole, tiling=Tiling(mpp=1.0, tile_px=64)).tilings[0].note == ""


def test_a_damaged_spot_hides_no_slide(tmp_path):
    """It counts as tissue: its tiles are asked for, and named when they cannot be read."""
    whole = write_slide(tmp_path / "whole.tif", on_glass(texture(768, 768), 100))
    slide = open_slide(with_holes(whole, tmp_path / "holed.tif", (14,)))
    seen, unread = slide.overview(768)
    assert unread[256:384, 256:384].all() and unread.sum() < 1.6 * 128**2
    assert np.array_equal(seen[:, ~unread], open_slide(whole).thumbnail(768)[:, ~unread])
    mask, sound = find_tissue(slide), find_tissue(open_slide(whole))
    assert mask.hidden == pytest.approx(unread.mean()) and (mask.tissue != sound.tissue).mean() < 0.01
    ruined = open_slide(with_holes(whole, tmp_path / "ruined.tif", tuple(range(18))))
    with pytest.raises(DamagedFile, match=r"ruined\.tif"):
        find_tissue(ruined)


def test_parts_of_a_mask():
    values = np.concatenate([np.full(500, 0.1), np.full(300, 0.7)])
    assert 0.3 < otsu(values, 0, 1) < 0.5
    colours = {
        "eosin": (230, 150, 180),
        "haematoxylin": (90, 60, 140),
        "brown": (150, 100, 60),
        "glass": (243, 243, 243),
    }
    for name, colour in colours.items():
        picture = np.tile(np.array(colour, np.uint8)[:, None, None], (1, 60, 60))
        assert not pen_marks(picture).any(), name
    for colour in ((30, 120, 50), (20, 60, 200), (20, 20, 25), (220, 20, 30)):
        picture = np.full((3, 60, 60), 243, np.uint8)
        picture[:, 20:40, 10:50] = np.array(colour)[:, None, None]
        assert pen_marks(picture)[22:38, 12:48].all(), colour
    rng = np.random.default_rng(0)
    sharp = rng.random((96, 96)) * 200
    assert sharpness(sharp) > 5 * sharpness(gaussian_filter(sharp, 2)) and np.isnan(sharpness(np.full((96, 96), 7.0)))


# --- saccade show -------------------------------------------------------------------------------


def test_show_names_what_was_found(marked, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "marked.tif").write_bytes(marked.path.read_bytes())
    (folder / "copy.tif").write_bytes(marked.path.read_bytes())
    for number in range(8):
        pixels = on_glass(texture(200, 200, seed=number), 20)
        write_slide(folder / f"s{number:02d}.tif", pixels, level_px=((100, 100),))
    (folder / "broken.svs").write_bytes(b"x")
    found = api.show(folder, sheet=tmp_path / "sheet.png", tiling=Tiling(tile_px=64), max_bad=0.15)
    assert isinstance(found, SlideAudit) and len(found.slides) == 10 and found.copies == [["copy.tif", "marked.tif"]]
    text = found.text()
    for words in (
        "1 unreadable",
        "UNREADABLE  broken.svs",
        "pen marks on",
        "out of focus",
        "bright",
        "are the same file",
    ):
        assert words in text
    assert Image.open(tmp_path / "sheet.png").size[0] > 1000 and found.to_dict()["tile_px"] == 64
    with pytest.raises(TooManyDamaged, match=r"broken\.svs"):
        api.show(folder, tiling=Tiling(tile_px=64), max_bad=0.01)


def test_the_report_of_a_run_shows_what_was_found(marked, tmp_path):
    folder, run = tmp_path / "set", tmp_path / "run"
    folder.mkdir()
    (folder / "marked.tif").write_bytes(marked.path.read_bytes())
    write_slide(folder / "other.tif", on_glass(texture(200, 200), 20), level_px=((100, 100),))
    (folder / "broken.svs").write_bytes(b"x")
    source = api.open_source(folder, tiling=Tiling(tile_px=64))
    run.mkdir()
    record = describe_slides(source, [0], run)
    assert [line["id"] for line in record["slides"]] == ["marked.tif"] and record["slides"][0]["pen"] > 0
    write_json(run / "data.json", {"source": str(folder), "slides": record})
    page = write_report(run).read_text(encoding="utf-8")
    assert "tiles of 64 px at 0.5 µm per pixel" in page and page.count("data:image/png") == 1
    line, unreadable = page.split("Slides (1)")[1].split("Slides that cannot be read, left out (1)")
    pen = f"{100 * record['slides'][0]['pen']:.1f}".rstrip("0").rstrip(".")
    assert f"{pen}\u00a0%" in line and "broken.<wbr>svs" in unreadable


def test_options_of_slides_are_for_slides(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="these are other images"):
        api.show(tmp_path, tiling=Tiling(mpp=0.5))


@pytest.mark.data
def test_the_real_slides(shared_data, tmp_path):
    source = api.open_source(shared_data / "slides", tiling=Tiling(slide_mpp=2.0, mpp=2.0, tile_px=64))
    known = {one.record.id: cut for one, cut in zip(source.entries, source.tilings)}
    assert known["test3-TRITC.ndpi"].mode == "dark" and known["CMU-1-Small-Region.svs"].mode == "bright"
    shares = {name: round(cut.fractions["tissue"], 2) for name, cut in known.items()}
    assert shares == {"C3L-00601-26-pyramid.tif": 0.32, "CMU-1-Small-Region.svs": 0.36, "test3-TRITC.ndpi": 0.8}
    assert slide_sheet(source, tmp_path / "sheet.png").stat().st_size > 50_000
