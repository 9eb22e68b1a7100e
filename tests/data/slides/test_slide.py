"""Reading slides: places and resolutions against level 0, two readers, files that are broken."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from made_slides import UM, on_glass, texture, with_holes, write_dicom, write_slide
from saccade import api
from saccade.data.audit.slides import audit_slides
from saccade.data.open import left_aside, open_source
from saccade.data.slides import slide as slide_module
from saccade.data.slides.readers import open_reader
from saccade.data.slides.resample import resample, weights
from saccade.data.slides.slide import Slide, open_slide
from saccade.data.slides.tiff_reader import TiffReader
from saccade.data.slides.tiling import Tiling
from saccade.errors import DamagedFile, DataError, TooManyDamaged, UsageError
from saccade.train.loop import Quiet


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A slide whose levels have factors 2.0026 and 4.0052, and its level 0."""
    pixels = texture(801, 1502, grain=5.0)
    path = tmp_path_factory.mktemp("slides") / "uneven.tif"
    return write_slide(path, pixels, level_px=((400, 750), (200, 375))), pixels


def from_level_0(pixels: np.ndarray, x: float, y: float, factor: float, size: int) -> np.ndarray:
    """The reference: level 0 alone, with exact weights, in double precision."""
    top, left, reach = int(y) - 30, int(x) - 30, int(size * factor) + 60
    near = pixels[top : top + reach, left : left + reach].astype(np.float64)
    down = weights(len(near), y - top, y - top + size * factor, size)
    across = weights(near.shape[1], x - left, x - left + size * factor, size)
    return np.stack([down @ channel @ across.T for channel in near.transpose(2, 0, 1)])


@pytest.mark.parametrize("reader", [open_reader, TiffReader], ids=["openslide", "tifffile"])
@pytest.mark.parametrize("factor", [1.0, 1.37, 2.0, 2.0026, 3.3, 4.0])
def test_regions_are_where_level_0_has_them(uneven, reader, factor):
    path, pixels = uneven
    slide = Slide(path, reader(path))
    assert slide.downsamples == pytest.approx((1, 2.0026, 4.0052), abs=1e-3)
    for x, y in ((43, 35), (701, 300), (1470 - int(32 * factor), 770 - int(32 * factor))):
        found = slide.read(x, y, mpp=UM * factor, size_px=(32, 32))
        wanted = from_level_0(pixels, x, y, factor, 32)
        error = np.abs(found - wanted).mean()
        assert error < 3.5, (x, y)  # of 50 grey values of spread; level and resampling both blur a little
        # Far from the corner a factor rounded to 2 would be two pixels off; even a third of a pixel fits worse.
        s = max(0.5, 0.3 * factor)
        beside = [(dx, dy) for dx in (-s, 0, s) for dy in (-s, 0, s) if dx or dy]
        assert all(np.abs(found - from_level_0(pixels, x + dx, y + dy, factor, 32)).mean() > error for dx, dy in beside)


def test_a_level_that_fits_is_handed_over_as_it_is(uneven):
    path, pixels = uneven
    found = open_slide(path).read(300, 200, mpp=UM, size_px=(40, 70))
    assert np.array_equal(found, pixels[200:240, 300:370].transpose(2, 0, 1))


@pytest.mark.parametrize(("share", "side", "own"), [(1.002, 256, True), (1.004, 256, False), (1.0024, 600, False)])
def test_a_level_that_all_but_fits_is_handed_over_too(uneven, share, side, own):
    """0.499 micrometres are 0.5: up to 0.25 % and one pixel at the far end; beyond, it is resampled."""
    path, pixels = uneven
    found = open_slide(path).read(300, 100, mpp=UM * share, size_px=(side, side))
    assert np.array_equal(found, pixels[100 : 100 + side, 300 : 300 + side].transpose(2, 0, 1)) == own


def test_outside_is_background(uneven):
    path, _ = uneven
    for reader in (open_reader, TiffReader):
        found = Slide(path, reader(path)).read(-200, 790, mpp=UM, size_px=(64, 64))
        assert (found[:, 11:] == 255).all() and (found == 255).all()
        found = Slide(path, reader(path)).read(1490, 790, mpp=UM, size_px=(32, 32))
        assert (found[:, 11:] == 255).all() and (found[:, :, 12:] == 255).all() and (found[:, :11, :12] < 255).any()


def test_both_readers_agree(uneven):
    path, _ = uneven
    one, two = open_slide(path), Slide(path, TiffReader(path))
    assert (one.vendor, two.vendor) == ("generic-tiff", "tiff") and one.spacing_um == two.spacing_um == (UM, UM)
    found = [slide.read(777, 333, mpp=1.7, size_px=(100, 120)).astype(int) for slide in (one, two)]
    assert np.abs(found[0] - found[1]).mean() < 1.5


@pytest.mark.parametrize(("rows", "columns"), [(1500, 1100), (300, 4000), (4000, 300)])
@pytest.mark.parametrize("reader", [open_reader, TiffReader], ids=["openslide", "tifffile"])
def test_a_slide_of_one_level_is_reduced_in_parts_that_equal_the_whole(tmp_path, monkeypatch, reader, rows, columns):
    """Its size says nothing of the memory that a picture of it takes."""
    path = write_slide(tmp_path / "one.tif", texture(rows, columns))
    slide = Slide(path, reader(path))
    whole, pieces = slide.thumbnail(100), []
    own = slide.reader.read

    def watched(level, left, top, size_px, fill):
        pieces.append(size_px[0] * size_px[1] * 3)
        return own(level, left, top, size_px, fill)

    monkeypatch.setattr(slide.reader, "read", watched)
    monkeypatch.setattr(slide_module, "WIDE_PX", 400)
    monkeypatch.setattr(slide_module, "AT_ONCE_BYTES", 2**19)
    parts = slide.thumbnail(100)
    assert len(pieces) > 6 and max(pieces) <= 2**19 and sum(pieces) < 2.5 * 3 * rows * columns
    assert np.abs(parts.astype(int) - whole).max() <= 1
    beyond = [slide.reduced(-500, -500, 9.7, (rows // 9 + 99, columns // 9 + 99))]
    monkeypatch.undo()
    beyond += [slide.reduced(-500, -500, 9.7, (rows // 9 + 99, columns // 9 + 99))]
    assert np.abs(beyond[0].astype(int) - beyond[1]).max() <= 1


def test_many_channels_are_counted_in_what_is_read_at_once(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 60_000, (5, 700, 900)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "five.ome.tif", pixels, tile=(64, 64), metadata={"axes": "CYX"})
    slide = open_slide(tmp_path / "five.ome.tif")
    whole, pieces, own = slide.thumbnail(90), [], slide.reader.read

    def watched(level, left, top, size_px, fill):
        pieces.append(size_px[0] * size_px[1] * 10)
        return own(level, left, top, size_px, fill)

    monkeypatch.setattr(slide.reader, "read", watched)
    monkeypatch.setattr(slide_module, "AT_ONCE_BYTES", 2**20)
    parts = slide.thumbnail(90)
    assert len(pieces) >= 8 and max(pieces) <= 2**20 and np.abs(parts.astype(int) - whole).max() <= 1


def test_weights_of_a_resampling():
    found = weights(10, 1.5, 8.5, 3)
    assert found.sum(axis=1) == pytest.approx(1) and (found[1] == found[1][::-1]).all()
    ramp = np.arange(40, dtype=np.uint16)[None, :, None].repeat(40, axis=0) * 1000
    small = resample(ramp, (4.5, 4.5, 34.5, 34.5), (10, 10))
    assert small.dtype == np.uint16 and small[0, :, 0].tolist() == [1000 * (4.5 + 3 * i + 1) for i in range(10)]


def test_sixteen_bits_and_many_channels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60_000, (5, 300, 400)).astype(np.uint16)
    path = tmp_path / "five.ome.tif"
    meta = {"axes": "CYX", "PhysicalSizeX": 0.325, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.325}
    tifffile.imwrite(path, pixels, tile=(64, 64), metadata=meta)
    slide = open_slide(path)
    assert (slide.vendor, slide.spacing_um, slide.size_px) == ("ome-tiff", (0.325, 0.325), (300, 400))
    assert np.array_equal(slide.read(100, 50, mpp=0.325, size_px=(90, 80)), pixels[:, 50:140, 100:180])
    assert slide.read(0, 0, mpp=0.65, size_px=(150, 200)).shape == (5, 150, 200)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_what_is_transparent_is_background_through_both_readers(tmp_path, kind):
    pixels = np.full((256, 256, 4), (200, 90, 160, 255), np.uint8)
    pixels[:128] = (0, 0, 0, 0)
    pixels[128:, 128:] = (100, 45, 80, 128) if kind == "assocalpha" else (200, 90, 160, 128)
    path = tmp_path / "clear.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", extrasamples=[kind], resolution=(20_000, 20_000))
    for reader in (open_reader, TiffReader):
        slide = Slide(path, reader(path), mpp=0.5)
        found = slide.read(0, 0, mpp=0.5, size_px=(300, 256)).astype(int)
        assert slide.reader.channels == len(found) == 3
        assert (found[:, :128] == 255).all() and (found[:, 256:] == 255).all()
        assert (found[:, 128:256, :128] == np.array([200, 90, 160])[:, None, None]).all()
        half = np.array([227, 172, 207])[:, None, None]
        assert np.abs(found[:, 128:256, 128:] - half).max() <= 2


# --- resolution ---------------------------------------------------------------------------------


def test_a_slide_without_resolution_names_three_ways(tmp_path):
    path = write_slide(tmp_path / "mute.tif", texture(300, 400), um=None, level_px=((150, 200),))
    with pytest.raises(DataError, match=r"mute\.tif[\s\S]*column mpp[\s\S]*--slide-mpp[\s\S]*ResolutionUnit"):
        open_source(path)
    write_slide(tmp_path / "also.tif", texture(300, 400), um=None, level_px=((150, 200),))
    (tmp_path / "broken.svs").write_bytes(b"")
    with pytest.raises(DataError, match=r"unknown: also\.tif, mute\.tif\n.*cannot be opened: broken\.svs"):
        open_source(tmp_path)
    assert open_source(path, tiling=Tiling(slide_mpp=0.25, tile_px=64, mpp=0.5)).mpp == 0.5
    (tmp_path / "slides.csv").write_text("path,mpp,label,patient\nmute.tif,0.25,tumour,p1\n")
    source = open_source(tmp_path / "slides.csv", tiling=Tiling(tile_px=64))
    assert source.slides[0].spacing_um == (0.25, 0.25)
    assert {(r.label, r.group) for r in source.records} == {("tumour", "p1")}


def test_slides_without_resolution_are_left_out_when_asked_for(tmp_path):
    write_slide(tmp_path / "good.tif", texture(300, 400), level_px=((150, 200),))
    write_slide(tmp_path / "mute.tif", texture(300, 400, seed=1), um=None, level_px=((150, 200),))
    with pytest.raises(DataError, match=r"mute\.tif[\s\S]*--skip-unknown-mpp to use the other 1 slide"):
        open_source(tmp_path, tiling=Tiling(tile_px=64))
    tiling = Tiling(tile_px=64, skip_unknown_mpp=True)
    report = api.show(tmp_path, tiling=tiling)
    assert [line.id for line in report.slides] == ["good.tif"] and report.skipped == ["mute.tif"]
    assert "left out    1 without a resolution: mute.tif" in report.text()
    messages = Quiet()
    api.embed("random:resnet10_w8", tmp_path, out=tmp_path / "tiles.parquet", tiling=tiling, console=messages)
    assert any("1 slide without a resolution left out: mute.tif" in line for line in messages.messages)
    with pytest.raises(DataError, match=r"resolution unknown: mute\.tif"):  # nothing would be left
        open_source(tmp_path / "mute.tif", tiling=tiling)
    with pytest.raises(UsageError, match="--skip-unknown-mpp are for slides"):
        open_source("synthetic:tissue?n=4&size=32", tiling=tiling)


def test_a_training_leaves_out_slides_without_resolution(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_slide(folder / "good.tif", texture(300, 400), level_px=((150, 200),))
    write_slide(folder / "mute.tif", texture(300, 400, seed=1), um=None, level_px=((150, 200),))
    settings = {"data.skip_unknown_mpp": True, "data.tile_px": 64, "train.steps": 1, "train.batch": 2}
    settings |= {"model.backbone": "resnet10_w8", "model.size_px": 32}
    api.pretrain(str(folder), out=tmp_path / "run", method="dino", settings=settings)
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["slides"]["without_resolution"] == ["mute.tif"]


def test_72_dpi_is_no_resolution(tmp_path):
    path = tmp_path / "web.tif"
    tifffile.imwrite(path, texture(300, 400), tile=(128, 128), photometric="rgb", resolution=(72, 72), resolutionunit=2)
    slide = open_slide(path)
    assert slide.spacing_um is None and "is ignored" in slide.note
    with pytest.raises(DataError, match="resolution unknown"):
        slide.read(0, 0, mpp=0.5, size_px=(8, 8))


def test_the_table_overrules_a_wrong_resolution(tmp_path):
    slide = open_slide(write_slide(tmp_path / "a.tif", texture(200, 200), um=5.0), mpp=0.5)
    assert slide.spacing_um == (0.5, 0.5) and "the file says 5" in slide.note


def test_finer_than_the_slide_is_refused(uneven):
    with pytest.raises(UsageError, match=r"0\.5 or coarser"):
        open_slide(uneven[0]).read(0, 0, mpp=0.25, size_px=(8, 8))
    with pytest.raises(UsageError, match=r"coarser than --mpp 0\.1"):
        open_source(uneven[0], tiling=Tiling(mpp=0.1))


# --- broken files -------------------------------------------------------------------------------


def test_broken_files_are_named(tmp_path, uneven):
    folder = tmp_path / "set"
    folder.mkdir()
    write_slide(folder / "good.tif", texture(600, 600), level_px=((300, 300),))
    (folder / "empty.svs").write_bytes(b"")
    (folder / "text.ndpi").write_text("this is no slide")
    (folder / "cut.tif").write_bytes(uneven[0].read_bytes()[: uneven[0].stat().st_size // 2])
    source = open_source(folder)
    reasons = dict(source.unreadable)
    assert set(reasons) == {"empty.svs", "text.ndpi", "cut.tif"} and {r.group for r in source.records} == {"good.tif"}
    assert "empty file" in reasons["empty.svs"] and "Unsupported" in reasons["text.ndpi"]
    assert not any(str(folder) in reason for reason in reasons.values())  # the name stands beside it
    with pytest.raises(TooManyDamaged, match="3 of 4 slides cannot be used"):
        audit_slides(source)
    with pytest.raises(DamagedFile, match=r"^\S+empty\.svs: empty file"):
        open_source(folder / "empty.svs")


@pytest.mark.parametrize("name", ["cut.tif", "cut.svs"])
def test_a_slide_that_is_cut_off_is_said_to_be_in_one_line(tmp_path, uneven, name, caplog):
    """The reader underneath has a log of its own, and a cut pyramid is no photograph."""
    path = tmp_path / name
    path.write_bytes(uneven[0].read_bytes()[: uneven[0].stat().st_size // 2])
    with pytest.raises(DamagedFile, match="the file is cut off") as raised:
        open_source(path)
    assert str(raised.value).count(name) == 1 and not caplog.records


def test_what_lies_beside_slides_is_named(tmp_path, uneven):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.tif", "notes.txt", "tile.png", "log.csv"):
        (folder / name).write_bytes(uneven[0].read_bytes() if name == "a.tif" else b"x,y\n1,2\n")
    found = api.show(folder, tiling=Tiling(tile_px=64, min_tissue=0))
    assert found.to_dict()["not_taken"] == ["log.csv", "notes.txt", "tile.png"]
    assert "3 files are not slides: log.csv, notes.txt, ..." in found.text()
    assert "pen marks" not in found.text()
    (folder / "manifest.csv").write_text("path,mpp\na.tif,25\n")  # whoever wrote it has chosen
    found = api.show(folder, tiling=Tiling(tile_px=8, min_tissue=0))
    assert "not taken" not in found.text() and "25 micrometres per pixel" in found.text()


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("slide,label\na.tif,x\n", "it has no column path or file or image or filename or file_name, but slide, label"),
        ("path,label\na,x\n", "no slide matches its column path, for example 'a'"),
    ],
)
def test_a_table_beside_slides_that_is_not_of_them_is_left_aside_and_that_is_said(tmp_path, uneven, table, why):
    (tmp_path / "a.tif").write_bytes(uneven[0].read_bytes())
    (tmp_path / "labels.csv").write_text(table)
    source = open_source(tmp_path, tiling=Tiling(tile_px=64, min_tissue=0))
    assert why in left_aside(source) and "labels.csv is ignored" in left_aside(source)
    assert left_aside(source) in audit_slides(source).text() and source.records[0].label is None


def test_an_empty_folder_is_told_of_slides(tmp_path):
    with pytest.raises(DataError, match=r"\.svs, \.ndpi"):
        open_source(tmp_path)


def test_the_error_of_another_thread_is_not_repeated(tmp_path):
    """A handle of OpenSlide that met damage refuses all that is read through it from then on."""
    openslide = pytest.importorskip("openslide")
    path = with_holes(write_slide(tmp_path / "a.tif", texture(512, 512)), tmp_path / "b.tif", (5,))
    slide = open_slide(path)
    for place in ((0, 0), (300, 300)):
        with pytest.raises(openslide.OpenSlideError):
            slide.reader.inner._slide.read_region(
                (150, 150), 0, (32, 32)
            )  # as another thread would, before it is noticed
        assert slide.reduced(*place, 1.0, (64, 64)).std() > 1
    with pytest.raises(DamagedFile, match="cannot be read at 150, 150"):
        slide.reduced(150, 150, 1.0, (32, 32))


def test_a_damaged_tile_is_an_error_and_the_rest_is_readable(tmp_path, uneven):
    data = bytearray(uneven[0].read_bytes())
    with tifffile.TiffFile(uneven[0]) as file:
        page = file.pages[0]
        start, count = page.dataoffsets[30], page.databytecounts[30]
    data[start : start + count] = bytes(count)
    path = tmp_path / "hole.tif"
    path.write_bytes(bytes(data))
    across = -(-1502 // 128)
    row, column = divmod(30, across)
    for reader in (open_reader, TiffReader):
        slide = Slide(path, reader(path))
        with pytest.raises(DamagedFile, match=r"hole\.tif.*cannot be read"):
            slide.read(column * 128, row * 128, mpp=UM, size_px=(64, 64))
        assert slide.read(0, 0, mpp=UM, size_px=(64, 64)).any()


@pytest.mark.parametrize("reader", [open_reader, TiffReader], ids=["openslide", "tifffile"])
@pytest.mark.parametrize("level_px", [(), ((1024, 1024), (512, 512))], ids=["one level", "three levels"])
def test_scattered_damage_hides_what_is_damaged_and_no_more(tmp_path, reader, level_px):
    """One tile of twenty in every level: pieces around it would hide a third of the slide, or all."""
    pixels = texture(2048, 2048, grain=3.0)
    whole = write_slide(tmp_path / "whole.tif", pixels, level_px=level_px)
    bad = [3, 40, 77, 90, 133, 160, 181, 201, 222, 240, 251, 12]
    path = with_holes(whole, tmp_path / "holes.tif", tuple(bad))
    for level in range(1, 1 + len(level_px)):
        path = with_holes(path, tmp_path / "holes.tif", (5,) if level > 1 else (7, 30, 44), level)
    slide, clean = Slide(path, reader(path)), open_slide(whole)
    for longest in (2048, 1000, 256):
        seen, unread = slide.overview(longest)
        per = 2048 / longest  # pixels of level 0 a pixel of the picture
        damage = len(bad) if longest > 1024 or not level_px else 3 * 4 if longest > 512 else 16
        assert damage * (128 / per) ** 2 * 0.9 <= unread.sum() <= damage * (128 / per + 4) ** 2
        assert (seen[:, unread] == 255).all()
        there = np.abs(seen.astype(int) - clean.thumbnail(longest))[:, ~unread]
        assert there.max() <= 2 and there.mean() < 0.5


def test_a_damaged_tile_is_met_once(tmp_path, monkeypatch):
    """Another handle of OpenSlide takes as long as many tiles: it is not opened again for what is known."""
    pixels = texture(1024, 1024)
    path = with_holes(write_slide(tmp_path / "whole.tif", pixels), tmp_path / "holes.tif", (9, 10))
    reader, opened = open_reader(path).inner, []
    whole = reader._open
    monkeypatch.setattr(reader, "_open", lambda: opened.append(1) or whole())
    for _ in range(5):
        with pytest.raises(DamagedFile, match="cannot be read at 128, 128"):
            reader.read(0, 128, 128, (64, 200), 255)
    assert len(opened) == 1
    with pytest.raises(DamagedFile):  # known from the first time, when both lay in the region
        reader.read(0, 300, 200, (10, 10), 255)
    assert len(opened) == 1 and reader.read(0, 400, 128, (64, 64), 255).pixels.any()
    # A handle that another thread has met damage with repeats the error for good tiles: they are no damage.
    with pytest.raises(reader.module.OpenSlideError):
        reader._slide.read_region((130, 130), 0, (4, 4))
    assert np.array_equal(reader.read(0, 600, 600, (64, 64), 255).pixels, pixels[600:664, 600:664])


def test_a_file_with_nothing_but_a_label_is_no_slide(tmp_path):
    path = tmp_path / "label.svs"
    label = np.asarray(Image.new("RGB", (387, 463), "white"))
    tifffile.imwrite(path, label, photometric="rgb", subfiletype=1, description="Aperio\nlabel 387x463", metadata=None)
    with pytest.raises(DataError, match=r"label\.svs"):
        open_source(path)


def test_a_stack_is_no_slide(tmp_path):
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, np.zeros((7, 64, 64), np.uint8), metadata={"axes": "ZYX"})
    with pytest.raises(DamagedFile, match="a stack"):
        TiffReader(path)


def test_a_dicom_series_is_one_slide_and_its_label_is_never_opened(tmp_path):
    pixels = on_glass(texture(500, 600), 60)
    write_dicom(tmp_path / "fine.dcm", pixels, um=0.5)
    write_dicom(tmp_path / "coarse.dcm", np.ascontiguousarray(pixels[::2, ::2]), um=1.0)
    write_dicom(tmp_path / "label.dcm", pixels[:128, :128], um=0.5, kind="LABEL")
    source = open_source(tmp_path, tiling=Tiling(tile_px=64))
    assert [one.record.id for one in source.entries] == ["fine.dcm"] and source.slides[0].vendor == "dicom"
    assert source.slides[0].downsamples == (1, 2) and source.slides[0].spacing_um == (0.5, 0.5)
    found = source.slides[0].read(100, 120, mpp=0.5, size_px=(64, 64)).astype(int)
    assert np.abs(found - pixels[120:184, 100:164].transpose(2, 0, 1)).mean() < 5
