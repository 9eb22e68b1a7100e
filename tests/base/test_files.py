"""Places that cannot be written: said before anything is computed, by file and with what can be done."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from made_slides import texture, write_slide
from saccade.attention.slide import SlideAttention, SlideOptions
from saccade.base.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    remove_leftovers,
    temporary_name,
    write_file,
    write_text,
)
from saccade.cli import app
from saccade.data.slide_features import SlideFeatures, save_features
from saccade.errors import StorageError
from saccade.features.table import FeatureTable, TableWriter, load_table
from saccade.viz.heatmap import TileScores

MODEL, IMAGES = "random:vit_micro_patch8", "synthetic:tissue?n=8&size=32"
CUT = ["--mpp", "1", "--tile", "64"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A slide, an image, and a file where a folder would have to be."""
    place = tmp_path_factory.mktemp("files")
    write_slide(place / "slide.tif", texture(256, 256))
    Image.fromarray(texture(32, 32)).save(place / "image.png")
    (place / "full").write_text("a file")
    return place


@pytest.mark.parametrize(
    "words",
    [
        ["embed", MODEL, "slide.tif", "--out", "full/x.parquet", *CUT],
        ["embed", MODEL, "slide.tif", "--out", "full/x.h5", *CUT],
        ["embed", MODEL, "slide.tif", "--out", "full/base/x.lance", *CUT],
        ["embed", MODEL, IMAGES, "--out", "full/x.parquet"],
        ["attend", MODEL, "slide.tif", "--out", "full/x.png", *CUT],
        ["attend", MODEL, "slide.tif", "--out", "full/maps", *CUT],
        ["attend", MODEL, "image.png", "--out", "full/x.png"],
        ["attend", "--text", "a cat", "--out", "full/x.svg"],
        ["show", "slide.tif", "--sheet", "full/x.png", *CUT],
        ["show", IMAGES, "--sheet", "full/x.png"],
        ["search", MODEL, "image.png", "--in", "t.parquet", "--out", "full/x.png"],
        ["export", MODEL, "--to", "safetensors", "--out", "full/x"],
        ["evaluate", MODEL, IMAGES, "--out", "full/x"],
        ["finetune", MODEL, IMAGES, "--out", "full/x"],
        ["pretrain", IMAGES, "--out", "full/x"],
        ["compare", IMAGES, "--out", "full/x", "--backbones", "resnet10_w8,vit_micro_patch8", "--sizes", "4"],
    ],
    ids=lambda words: f"{words[0]} {words[-5] if words[-1] == '64' else words[-1]}",
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_computed(files, words, monkeypatch):
    from saccade.data.cache.image_cache import ImageCache
    from saccade.features.embed_slides import Embedder

    monkeypatch.chdir(files)
    monkeypatch.setattr(Embedder, "features", lambda *_: pytest.fail("tiles were embedded"))
    monkeypatch.setattr(ImageCache, "batch", lambda *_: pytest.fail("images were read"))
    found = CliRunner().invoke(app.app, words)
    assert isinstance(found.exception, StorageError), found.exception
    assert "full" in str(found.exception) and sorted(place.name for place in files.iterdir()) == [
        "full", "image.png", "slide.tif",
    ]  # fmt: skip


def test_an_interactive_page_asks_for_its_place_first(files, tmp_path, monkeypatch):
    from saccade.attention.single_file import write_interactive

    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(StorageError, match=r"full/x\.html"):
        write_interactive(tmp_path, files / "full" / "x.html", [files / "image.png"])


def test_a_place_is_asked_without_being_made(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "x.png")
    check_writable(tmp_path)
    (tmp_path / "there.png").touch()
    check_writable(tmp_path / "there.png")
    assert [place.name for place in tmp_path.iterdir()] == ["there.png"]


@pytest.mark.parametrize("name", ["x.png", "x.csv", "x.geojson", "x.tif", "maps"])
def test_maps_of_slides_end_in_one_error(files, name):
    from saccade.data.slides.slide import open_slide

    heat = TileScores("likeness", np.array([[0, 0], [128, 0]]), 128.0, np.array([0.1, 0.9]))
    found = SlideAttention(open_slide(files / "slide.tif"), heat, "m", SlideOptions())
    with pytest.raises(StorageError, match="full"):
        found.save(files / "full" / name)


def test_what_was_there_stays_where_writing_fails(tmp_path):
    place = write_text(tmp_path / "a.txt", "first")

    def half(temporary):
        temporary.write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"a\.txt\n  got:      No space left on device\n  hint: free some space"):
        write_file(place, half)
    assert place.read_text() == "first" and list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_features_of_a_slide(files, suffix):
    empty = SlideFeatures(np.zeros((0, 2), np.int64), np.zeros((0, 4), np.float32))
    with pytest.raises(StorageError, match=r"cannot write .*full"):
        save_features(files / "full" / f"x{suffix}", empty)


def test_a_table_written_in_parts(files, tmp_path):
    part = FeatureTable(np.ones((1, 2), np.float32), ["a"], [None], [None], [None], [None])
    with pytest.raises(StorageError, match="full"), TableWriter(files / "full" / "x.parquet"):
        pytest.fail("something was computed")
    with TableWriter(tmp_path / "x.parquet") as writer:
        writer.add(part)
    assert load_table(tmp_path / "x.parquet").ids == ["a"] and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "is-a-folder.parquet").mkdir()
    with pytest.raises(StorageError, match=r"is-a-folder"), TableWriter(tmp_path / "is-a-folder.parquet") as writer:
        writer.add(part)


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_file(target) as first:
        first.write_text("first")
        with atomic_file(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("old")

    def fails():
        with atomic_folder(folder) as temporary:
            (temporary / "weights").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="model"):
        fails()
    assert (folder / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [folder]
    with atomic_folder(folder) as temporary:
        (temporary / "other").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["other"] and list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    temporary_name(tmp_path / "a.txt").write_text("half")
    temporary_name(tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("whole")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
