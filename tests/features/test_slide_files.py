"""Which files of features still hold, and what each slide's is called."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from made_slides import texture, with_holes, write_slide
from saccade import api
from saccade.data.open import open_source
from saccade.data.slide_features import SlideFeatures, load_features, read_about, save_features
from saccade.data.slides.tiling import Tiling
from saccade.errors import StorageError, TooManyDamaged, UsageError
from saccade.features.embed_slides import Embedder, load_for_tiles
from saccade.features.slide_files import name_files
from saccade.tasks.embed import LabelOptions

MODEL = "random:vit_micro_patch8"
CUT = Tiling(mpp=1.0, tile_px=64, min_tissue=0.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("one") / "one.tif", texture(256, 256))


def embedded(data, out, **others):
    return api.embed(MODEL, data, out=out, **{"tiling": CUT} | others)


def refuse(monkeypatch):
    """From here on no tile is embedded."""
    monkeypatch.setattr(Embedder, "features", lambda *_: pytest.fail("tiles were embedded again"))


@pytest.mark.parametrize("out", ["f.h5", "f"])
def test_vectors_of_another_input_are_made_again(slide, tmp_path, out, monkeypatch):
    place = tmp_path / out
    colour = load_features(embedded(slide, place).files[0]).features
    again = embedded(slide, place, grey=True)
    grey = load_features(again.files[0]).features
    assert again.skipped == 0 and not np.allclose(grey, colour)
    refuse(monkeypatch)
    assert embedded(slide, place, grey=True).skipped == 1


def test_a_resolution_told_otherwise_moves_the_tiles(tmp_path):
    slide = write_slide(tmp_path / "unsaid.tif", texture(280, 280), um=None)
    first = embedded(slide, tmp_path / "f", tiling=dataclasses.replace(CUT, slide_mpp=0.5))
    again = embedded(slide, tmp_path / "f", tiling=dataclasses.replace(CUT, slide_mpp=0.505))
    assert (first.tiles, again.tiles, again.skipped) == (9, 9, 0)
    assert read_about(again.files[0])["tile_px_level0"] == pytest.approx(64 / 0.505)


@pytest.mark.parametrize("out", ["f.h5", "f"])
def test_labels_that_come_later_are_written_into_files_that_are_kept(slide, tmp_path, out, monkeypatch):
    first = load_features(embedded(slide, tmp_path / out).files[0])
    table = tmp_path / "table.csv"
    table.write_text("path,label,patient,split\none.tif,tumour,P1,test\n")
    refuse(monkeypatch)
    found = embedded(slide.parent, tmp_path / out, labels=LabelOptions(labels=table))
    again = load_features(found.files[0])
    assert found.skipped == 1 and np.array_equal(first.features, again.features)
    assert [again.about[key] for key in ("label", "group", "split")] == ["tumour", "P1", "test"]
    written = found.files[0].stat().st_mtime_ns
    embedded(slide.parent, tmp_path / out, labels=LabelOptions(labels=table))
    assert found.files[0].stat().st_mtime_ns == written


def test_a_file_with_more_left_out_than_is_allowed_now_is_not_kept(tmp_path):
    whole = write_slide(tmp_path / "whole.tif", texture(768, 768))
    holed, fine = with_holes(whole, tmp_path / "holed.tif", (0, 14)), Tiling(mpp=0.5, tile_px=64, min_tissue=0.0)
    embedded(holed, tmp_path / "f", tiling=fine, max_bad=0.9)
    assert embedded(holed, tmp_path / "f", tiling=fine, max_bad=0.9).skipped == 1
    with pytest.raises(TooManyDamaged, match=r"holed\.tif: 8 of 144 tiles"):
        embedded(holed, tmp_path / "f", tiling=fine, max_bad=0.05)


def test_statistics_of_all_slides_are_of_these_slides(slide, tmp_path, monkeypatch):
    """Random weights see tiles by the mean and spread of all: with one more slide, the first one's vectors change."""
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slide, folder / "a.tif")
    first = load_features(embedded(folder, tmp_path / "f").files[0]).features
    write_slide(folder / "b.tif", texture(256, 256, seed=1) // 3)
    found = embedded(folder, tmp_path / "f")
    again = load_features(found.files[0]).features
    assert found.skipped == 0 and not np.allclose(first, again)
    afresh = load_features(embedded(folder, tmp_path / "g").files[0]).features
    assert np.array_equal(again, afresh)
    refuse(monkeypatch)
    assert embedded(folder, tmp_path / "f").skipped == 2


def test_a_trained_model_has_its_own_input_except_on_slides_of_another_depth(slide, tmp_path):
    eight = open_source(slide, tiling=CUT)
    deep = write_slide(tmp_path / "deep.tif", texture(256, 256).astype(np.uint16) * 257)
    model = dataclasses.replace(load_for_tiles(MODEL, eight), name="a trained one")
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, mean=(0.5,) * 3, std=(0.2,) * 3))
    own = Embedder(model, eight, say=print)
    assert own.input == {
        "size_px": 64, "grey": False, "offset": 0.0, "scale": 255.0, "mean": [0.5] * 3, "std": [0.2] * 3,
    }  # fmt: skip
    other = Embedder(model, open_source(deep, tiling=CUT), say=print)
    assert set(other.input) == {"size_px", "grey", "of"}
    before = dict(other.input)
    other.cache()  # now the range is known; what it follows from is still the same
    assert other.about(0)["input"] == before


# --- names ---------------------------------------------------------------------------------------


def named(folder, slides):
    """Names of the files of slides (id: content), which are then written, as a pass over them does."""
    files = name_files(folder, ".h5", list(slides), list(slides.values()))
    for file, (slide, digest) in zip(files, slides.items()):
        about = {"slide": slide, "slide_sha256": digest}
        save_features(file, SlideFeatures(np.zeros((0, 2), np.int64), np.zeros((0, 4), np.float32), about))
    return [file.name for file in files]


def test_a_slide_has_one_file_whatever_is_embedded_with_it(tmp_path):
    assert named(tmp_path, {"x.tif": "a"}) == ["x.h5"]
    whole = {"A/x.tif": "a", "B/x.tif": "b", "B/y.tif": "y"}
    assert named(tmp_path, whole) == ["x.h5", "B__x.tif.h5", "y.h5"] == named(tmp_path, whole)
    assert named(tmp_path, {"x.tif": "b", "y.tif": "y"}) == ["B__x.tif.h5", "y.h5"]  # the folder B alone
    assert len(list(tmp_path.iterdir())) == 3


def test_files_of_folders_are_found_again_for_one_folder(tmp_path):
    assert named(tmp_path, {"A/x.tif": "a", "B/x.tif": "b"}) == ["A__x.tif.h5", "B__x.tif.h5"]
    assert named(tmp_path, {"x.tif": "a"}) == ["A__x.tif.h5"]


def test_a_slide_of_other_content_has_the_file_of_its_name(tmp_path):
    assert named(tmp_path, {"x.tif": "a"}) == named(tmp_path, {"x.tif": "later"}) == ["x.h5"]


def test_copies_have_a_file_each(tmp_path):
    copies = {"A/x.tif": "a", "B/x.tif": "a", "z.tif": "a"}
    assert named(tmp_path, copies) == ["A__x.tif.h5", "B__x.tif.h5", "z.h5"] == named(tmp_path, copies)


def test_two_slides_that_would_have_one_file_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"A__x\.tif\.h5\n  got:      A/x\.tif and \.\./A/x\.tif"):
        named(tmp_path, {"c.tif": "c", "A/x.tif": "a", "../A/x.tif": "b"})


def test_a_folder_embedded_alone_and_then_with_others_is_there_once(slide, tmp_path):
    for place in ("A", "B"):
        (tmp_path / "all" / place).mkdir(parents=True)
    shutil.copy(slide, tmp_path / "all" / "A" / "x.tif")
    write_slide(tmp_path / "all" / "B" / "x.tif", texture(256, 256, seed=2))
    alone = embedded(tmp_path / "all" / "A", tmp_path / "f.h5").files
    found = embedded(tmp_path / "all", tmp_path / "f.h5").files
    assert [file.name for file in alone] == ["x.h5"] and [file.name for file in found] == ["x.h5", "B__x.tif.h5"]
    assert read_about(found[0])["slide"] == "A/x.tif"
    assert sorted(file.name for file in (tmp_path / "f.h5").iterdir()) == ["B__x.tif.h5", "x.h5"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not text")
@pytest.mark.parametrize("out", ["f.h5", "f"])
def test_a_name_that_is_no_text_is_spelt_out(slide, tmp_path, out, monkeypatch):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slide, os.fsdecode(os.fsencode(folder) + b"/n\xff.tif"))
    (file,) = embedded(folder, tmp_path / out).files
    assert file.stem == r"n\udcff" and file.is_file()
    found = load_features(file)
    assert found.about["slide"] == found.about["group"] == r"n\udcff.tif"
    refuse(monkeypatch)
    assert embedded(folder, tmp_path / out).skipped == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not text")
@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_a_folder_whose_name_is_no_text_is_no_traceback(tmp_path, suffix):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff")) / f"a{suffix}"
    empty = SlideFeatures(np.zeros((0, 2), np.int64), np.zeros((0, 4), np.float32))
    with pytest.raises(StorageError, match="cannot be encoded as UTF-8"):
        save_features(place, empty)
