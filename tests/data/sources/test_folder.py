"""Folders and archives: the same images in the same order, manifests kept to the letter, refusals clear."""

import concurrent.futures
import io
import multiprocessing
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

import saccade
from saccade.base.contracts import Source
from saccade.data.audit.images import audit, render
from saccade.data.open import left_aside, open_source
from saccade.data.sources.archive import ArchiveSource
from saccade.data.sources.folder import FolderSource
from saccade.data.sources.source import natural_key, select, with_split
from saccade.errors import DamagedFile, DataError, UsageError


def png(value: int, size: tuple[int, int] = (6, 5)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def pack(path: Path, files: dict[str, bytes | str]) -> Path:
    raw = {name: c.encode() if isinstance(c, str) else c for name, c in files.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in raw.items():
                archive.writestr(name, content)
        return path
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        for name, content in raw.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def ids(source: Source) -> list[str]:
    return [record.id for record in source.records]


def values(source: Source) -> list[int]:
    return [int(source.read(i).pixels[0, 0, 0]) for i in range(len(source))]


TREE = {
    f"{split}/{kind}/img{n}.png": png(100 * (split == "test") + 10 * (kind == "b") + n)
    for split in ("training", "test")
    for kind in ("a", "b")
    for n in (1, 2, 10)
}


# --- folder rules ---------------------------------------------------------------------------------


def test_flat_folder_in_natural_order(tmp_path):
    source = open_source(write(tmp_path, {f"img{n}.png": png(n) for n in (10, 2, 1)}))
    assert ids(source) == ["img1.png", "img2.png", "img10.png"] and values(source) == [1, 2, 10]
    assert {(r.label, r.split, r.group) for r in source.records} == {(None, None, None)}
    assert source.read(0).pixels.shape == (1, 6, 5) and source.read(0).record is source.records[0]


def test_folders_are_classes(tmp_path):
    source = open_source(write(tmp_path, {"b/1.png": png(1), "a/2.png": png(2), "a/deep/er/3.JPG": png(3)}))
    assert [(r.id, r.label) for r in source.records] == [("a/2.png", "a"), ("a/deep/er/3.JPG", "a"), ("b/1.png", "b")]


@pytest.mark.parametrize(
    ("word", "split"), [("train", "train"), ("Training", "train"), ("valid", "val"), ("TEST", "test")]
)
def test_split_folders(tmp_path, word, split):
    source = open_source(write(tmp_path, {f"{word}/a/1.png": png(1), f"{word}/b/1.png": png(2)}))
    assert [(r.split, r.label) for r in source.records] == [(split, "a"), (split, "b")]


def test_common_folders_and_a_single_folder_say_nothing(tmp_path):
    source = open_source(write(tmp_path, {"data/v1/a/1.png": png(1), "data/v1/b/1.png": png(2)}))
    assert [r.label for r in source.records] == ["a", "b"]
    source = open_source(tmp_path / "data" / "v1" / "a")
    assert [r.label for r in source.records] == [None]


def test_hidden_files_are_no_images(tmp_path):
    names = ("1.png", ".2.png", ".git/3.png", "__MACOSX/4.png", "notes.txt")
    assert ids(open_source(write(tmp_path, {name: png(1) for name in names}))) == ["1.png"]


def test_a_loop_of_links_ends(tmp_path):
    write(tmp_path, {"a/1.png": png(1)})
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert ids(open_source(tmp_path)) == ["a/1.png"]


def test_natural_order():
    names = ["1.png", "01.png", "a1b10.png", "a1b2.png", "a.png", "10.png", "9" * 5000, "²x.png"]
    want = ["01.png", "1.png", "10.png", "9" * 5000, "a1b2.png", "a1b10.png", "a.png", "²x.png"]
    assert set(want) == set(names)
    for order in (names, names[::-1]):
        assert [n[:9] for n in sorted(order, key=natural_key)] == [n[:9] for n in want]


def test_a_file_that_vanishes_is_damaged(tmp_path):
    source = open_source(write(tmp_path, {"1.png": png(1)}))
    (tmp_path / "1.png").unlink()
    with pytest.raises(DamagedFile, match=r"1\.png"):
        source.read(0)


# --- manifests ------------------------------------------------------------------------------------


def test_manifest_columns(tmp_path):
    table = "Path,Class,split,group,organ\nx/10.png,b,Training,p2,lung\nx/2.png,,test,,\n"
    source = open_source(
        write(tmp_path, {"x/2.png": png(2), "x/10.png": png(10), "x/3.png": png(3), "labels.csv": table})
    )
    first, second = source.records
    assert (first.id, first.label, first.split, first.group, dict(first.extra)) == (
        "x/2.png",
        None,
        "test",
        None,
        {"organ": ""},
    )
    assert (second.label, second.split, second.group, second.extra["organ"]) == ("b", "train", "p2", "lung")
    assert source.unlisted == 1


def test_any_column_can_be_label_or_group(tmp_path):
    write(tmp_path, {"1.png": png(1), "labels.csv": "file,label,organ,Patient\n1.png,x,lung,p1\n"})
    record = open_source(tmp_path, label="organ", group="patient").records[0]
    assert (record.label, record.group, dict(record.extra)) == ("lung", "p1", {"label": "x"})
    with pytest.raises(UsageError, match="did you mean 'patient'"):
        open_source(tmp_path, group="patiens")
    with pytest.raises(UsageError, match="unknown column"):
        open_source(tmp_path, label="zzz")


def test_label_without_a_table(tmp_path):
    with pytest.raises(DataError, match="has no table of columns"):
        open_source(write(tmp_path, {"1.png": png(1)}), group="patient")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_manifest_opened_as_data(tmp_path, separator):
    text = f"\ufefffile{separator}label\r\nsub/1.png{separator}a\r\n../away/2.png{separator}b\r\n"
    write(tmp_path, {"here/my.csv": text, "here/sub/1.png": png(1), "away/2.png": png(2)})
    source = open_source(tmp_path / "here" / "my.csv")
    assert sorted(zip(values(source), (r.label for r in source.records))) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_empty_rows_of_spreadsheets_are_no_rows(tmp_path, separator):
    rows = [["path", "label", "group"], ["a.png", "x", ""], ["", "", ""], ["b.png", "", ""], ["", " ", ""]]
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("\r\n".join(separator.join(row) for row in rows) + "\r\n")
    source = open_source(tmp_path, manifest=tmp_path / "t.csv")
    assert [(record.id, record.label) for record in source.records] == [("a.png", "x"), ("b.png", None)]
    (tmp_path / "t.csv").write_text(separator.join(rows[0]) + "\n" + separator * 2 + "\n")
    with pytest.raises(DataError, match=r"t\.csv: the table has no rows"):
        open_source(tmp_path, manifest=tmp_path / "t.csv")


def test_absolute_paths(tmp_path):
    write(tmp_path, {"a/1.png": png(7)})
    write(tmp_path, {"t/my.csv": f"path,label\n{tmp_path / 'a' / '1.png'},x\n"})
    assert values(open_source(tmp_path / "t" / "my.csv")) == [7]


def test_parquet_manifest(tmp_path):
    write(tmp_path, {"1.png": png(1), "2.png": png(2)})
    table = pyarrow.table({"path": ["1.png", "2.png"], "label": [3, None]})
    pyarrow.parquet.write_table(table, tmp_path / "manifest.parquet")
    assert [r.label for r in open_source(tmp_path).records] == ["3", None]


def test_a_missing_number_of_a_parquet_table_is_no_label(tmp_path):
    write(tmp_path, {"1.png": png(1), "2.png": png(2)})
    table = pyarrow.table({"path": ["1.png", "2.png"], "label": [0.5, float("nan")]})
    pyarrow.parquet.write_table(table, tmp_path / "manifest.parquet")
    assert [r.label for r in open_source(tmp_path).records] == ["0.5", None]


def test_a_table_apart_from_the_images(tmp_path):
    write(tmp_path, {"data/a/1.png": png(1), "else/t.csv": "path,label\na/1.png,x\n"})
    assert open_source(tmp_path / "data", manifest=tmp_path / "else" / "t.csv").records[0].label == "x"
    pack(tmp_path / "d.zip", {"a/1.png": png(1)})
    assert open_source(tmp_path / "d.zip", manifest=tmp_path / "else" / "t.csv").records[0].label == "x"


def test_missing_rows_are_counted_and_named(tmp_path):
    rows = "".join(f"gone{n}.png,x\n" for n in range(7))
    write(tmp_path, {"1.png": png(1), "labels.csv": "path,label\n1.png,x\n" + rows})
    with pytest.raises(DataError, match=r"7 of 8 rows.*\n.*gone0\.png, .*gone4\.png \.\.\."):
        open_source(tmp_path)


def test_a_row_never_finds_the_file_of_another_folder(tmp_path):
    """Found by its bare name it would give class b the label of class a."""
    write(tmp_path, {"b/1.png": png(1), "c/2.png": png(2), "labels.csv": "path,label\na/1.png,a\nc/2.png,c\n"})
    with pytest.raises(DataError, match=r"1 of 2 rows[\s\S]*a/1\.png"):
        open_source(tmp_path)


def test_a_bare_name_finds_its_only_file(tmp_path):
    write(
        tmp_path,
        {"deep/1.png": png(1), "images/2.png": png(2), "masks/2.png": png(3), "labels.csv": "file\n1.png\n2.png\n"},
    )
    assert ids(open_source(tmp_path)) == ["deep/1.png", "images/2.png"]


@pytest.mark.parametrize("column", ["path", "file", "image", "filename", "File_Name"])
def test_columns_that_say_where_an_image_is(tmp_path, column):
    source = open_source(write(tmp_path, {"1.png": png(1), "labels.csv": f"{column},label\n1.png,a\n"}))
    assert source.records[0].label == "a" and left_aside(source) == ""


def test_a_table_of_these_images_is_used_or_refused(tmp_path):
    """One row too many must not cost all labels without a word."""
    write(tmp_path, {"1.png": png(1), "2.png": png(2), "labels.csv": "file,class\n1.png,a\n2.png,b\n1.png,a\n"})
    for manifest in (None, tmp_path / "labels.csv"):
        with pytest.raises(DataError, match=r"1 files are listed in more than one row[\s\S]*1\.png[\s\S]*boxes"):
            open_source(tmp_path, manifest=manifest)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("file,class\nother.png,a\n", "no file matches its column file, for example 'other.png'"),
        ("name,class\n1.png,a\n", "no column path or file or image or filename or file_name, but name, class"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_something_else_is_left_aside_and_that_is_said(tmp_path, table, why, packed):
    files = {"1.png": png(1), "2.png": png(2), "labels.csv": table}
    source = open_source(pack(tmp_path / "p.zip", files) if packed else write(tmp_path / "folder", files))
    assert [record.label for record in source.records] == [None, None]
    assert why in left_aside(source) == left_aside(select(source, [0])) and "labels.csv" in left_aside(source)
    assert left_aside(source) in render(audit(source))


def test_training_and_measuring_say_that_a_table_is_left_aside(tmp_path):
    from saccade.train.loop import Quiet

    class Heard(Quiet):
        def say(self, text):
            said.append(text)

    said: list[str] = []
    files = {f"{name}/{i}.png": png(i) for i, name in enumerate("aabbaabb")}
    write(tmp_path / "data", files | {"labels.csv": "name,group\n1.png,a\n"})
    settings = {"train.steps": 1, "train.batch": 2, "model.size_px": 32}
    saccade.pretrain(
        tmp_path / "data", out=tmp_path / "run", backbone="resnet10_w8", settings=settings, console=Heard()
    )
    assert [text for text in said if "labels.csv is ignored" in text]
    said.clear()
    saccade.evaluate(["random:resnet10_w8"], tmp_path / "data", out=tmp_path / "e", console=Heard())
    assert [text for text in said if "labels.csv is ignored" in text]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("content", [b"", b"path,label\n", b"\xff\xfe\x00garbage"])
def test_unreadable_tables(tmp_path, name, content):
    write(tmp_path, {"1.png": png(1), name: content})
    with pytest.raises(DataError, match=name):
        open_source(tmp_path / name)


# --- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"])
def test_an_archive_equals_its_folder(tmp_path, suffix):
    folder = FolderSource(write(tmp_path / "folder", TREE))
    archive = open_source(pack(tmp_path / f"packed{suffix}", TREE))
    assert list(archive.records) == folder.records
    assert [archive.content_hash(i) for i in range(len(archive))] == [
        folder.content_hash(i) for i in range(len(folder))
    ]
    for i in range(len(folder)):
        np.testing.assert_array_equal(archive.read(i).pixels, folder.read(i).pixels)


@pytest.mark.parametrize("top", ["", "cells/", "./"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_with_a_table(tmp_path, suffix, top):
    files = {f"{top}img/1.png": png(1), f"{top}img/2.png": png(2), f"{top}labels.csv": "path,label\nimg/2.png,x\n"}
    source = open_source(pack(tmp_path / f"p{suffix}", files))
    assert values(source) == [2] and source.records[0].label == "x" and source.unlisted == 1


def test_an_archive_made_on_a_mac_keeps_its_table(tmp_path):
    files = {"data/img/1.png": png(1), "data/labels.csv": "path,label\nimg/1.png,x\n"}
    shadows = {"__MACOSX/data/._labels.csv": b"shadow", "__MACOSX/data/img/._1.png": b"shadow", ".DS_Store": b"mac"}
    assert [record.label for record in open_source(pack(tmp_path / "p.zip", files | shadows)).records] == ["x"]


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/out.png", "..\\out.png", "C:/out.png"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_members_that_escape_are_refused(tmp_path, suffix, name):
    with pytest.raises(DataError, match="has a path outside the archive"):
        open_source(pack(tmp_path / f"p{suffix}", {"1.png": png(1), name: png(2)}))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_a_cut_archive_is_said_to_be_one(tmp_path, suffix):
    path = pack(tmp_path / f"p{suffix}", {f"{n}.png": np.random.default_rng(n).bytes(3000) for n in range(8)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="incomplete archive"):
        open_source(path)


def test_a_damaged_member_is_one_damaged_file(tmp_path):
    path = pack(tmp_path / "p.zip", {"1.png": png(1), "2.png": png(2)})
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF  # the zip's checksum notices
    path.write_bytes(bytes(data))
    source = open_source(path)
    with pytest.raises(DamagedFile, match=r"p\.zip:1\.png"):
        source.read(0)
    assert source.read(1).pixels[0, 0, 0] == 2


def test_a_full_disk_is_not_called_a_broken_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = pack(tmp_path / "p.tar.gz", {"1.png": png(1)})
    monkeypatch.setattr("saccade.data.sources.archive._unpack", full)
    with pytest.raises(DataError, match="no room to unpack"):
        open_source(path)


def test_a_member_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_MAX_MIB", "1")
    source = open_source(pack(tmp_path / "p.zip", {"1.png": bytes(2**20) + png(1)}))
    with pytest.raises(DamagedFile, match=r"1\.png: its header claims 1,048,[\s\S]*set SACCADE_MAX_MIB=2"):
        source.read(0)


def _in_child(source: Source, wanted: list[int], answers) -> None:
    answers.put([int(source.read(i).pixels[0, 0, 0]) for i in wanted])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("suffix", [".zip", ".tar.xz"])
def test_threads_and_forked_processes_read_alike(tmp_path, suffix):
    source = ArchiveSource(pack(tmp_path / f"p{suffix}", {f"{n:03d}.png": png(n, (90, 90)) for n in range(200)}))
    wanted = list(range(200)) * 3
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_in_child, args=(source, wanted, answers)) for _ in range(2)]
    for child in children:
        child.start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        here = list(pool.map(lambda i: int(source.read(i).pixels[0, 0, 0]), wanted))
    found = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join(timeout=60)
    assert here == wanted and found == [wanted, wanted]


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.svs", r"x\.svs: cannot be opened as a slide"),
        ("x.png", "single image"),
        ("x.docx", "unknown file format"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / name)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no images found[\s\S]*\.png"):
        open_source(tmp_path)
    write(tmp_path, {"b.txt": b"x", "c.txt": b"x"})
    with pytest.raises(DataError, match=r"no images found[\s\S]*2 files"):
        open_source(tmp_path)


def test_arrays_and_synthetic_images_have_no_columns(tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(UsageError):
        open_source(tmp_path / "s.npy", group="patient")
    with pytest.raises(UsageError):
        open_source("synthetic:tissue?n=8", label="organ")


def test_synthetic_tissue():
    assert len(open_source("synthetic:tissue?n=16&size=32&groups=4")) == 16
    with pytest.raises(UsageError, match="did you mean 'tissue'"):
        open_source("synthetic:tisue")


# --- views ----------------------------------------------------------------------------------------


def test_select_and_with_split(tmp_path):
    source = open_source(write(tmp_path, TREE))
    some = select(source, [5, 0, 5])
    assert len(some) == 3 and [r.id for r in some.records] == [ids(source)[i] for i in (5, 0, 5)]
    assert some.content_hash(0) == source.content_hash(5) and some.read(1).record == source.records[0]
    test = with_split(source, ["testing"])
    assert {r.split for r in test.records} == {"test"} and len(test) == 6
    assert len(with_split(source, ["train", "test"])) == 12
    assert values(select(test, [0])) == [values(test)[0]]
    with pytest.raises(DataError, match="splits test, train"):
        with_split(source, ["val"])
