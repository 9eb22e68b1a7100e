"""The audit counts what is there, names what is wrong and finds copies that leak; the contact sheet shows it."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from saccade.base.contracts import Record, Sample
from saccade.data.audit.contact_sheet import contact_sheet
from saccade.data.audit.images import audit, render
from saccade.data.open import open_source
from saccade.errors import TooManyDamaged, UsageError


class Listed:
    """Images or volumes held in a list."""

    name = "listed"

    def __init__(self, images, records):
        self.images, self.records, self.axes = images, records, images[0].ndim - 1

    def __len__(self):
        return len(self.records)

    def read(self, index):
        return Sample(self.images[index], self.records[index], spacing_um=(0.5, 0.5))

    def content_hash(self, index):
        return str(self.images[index].tobytes())


def constant(value: float, shape=(1, 4, 5), dtype=np.uint8) -> np.ndarray:
    return np.full(shape, value, dtype)


def folder_of(tmp_path, count: int):
    rng = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 9), dtype=np.uint8)).save(tmp_path / f"{n:03d}.png")
    return tmp_path


def test_counts(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", constant(4000, (7, 9), np.uint16))
    tifffile.imwrite(tmp_path / "b.tif", constant(3, (8, 5), np.uint16))
    Image.new("RGB", (6, 20), (1, 2, 3)).save(tmp_path / "c.png")
    Image.new("RGB", (6, 20)).save(tmp_path / "extra.png")
    rows = "path,label,split,group,organ\na.tif,x,train,p1,o\nb.tif,x,train,p1,o\nc.png,y,test,p2,o\n"
    (tmp_path / "labels.csv").write_text(rows)
    found = audit(open_source(tmp_path))
    assert (found.images, found.looked_at, found.readable, found.unlisted) == (3, 3, 3, 1)
    assert (found.smallest_px, found.largest_px) == ((7, 5), (20, 9))
    assert found.dtypes == {"uint16": 2, "uint8": 1} and found.channels == {1: 2, 3: 1}
    assert found.value_range == (1, 4000) and found.bits_used == 12
    assert found.labels == {"x": 2, "y": 1} and found.splits == {"test": 1, "train": 2}
    assert (found.groups, found.smallest_group, found.largest_group) == (2, 1, 2)
    assert found.columns == ("organ",) and found.spacings_um == {}
    assert found.hashes.keys() == {"a.tif", "b.tif", "c.png"}
    assert not found.duplicates and not found.leaks and not found.damaged
    text = render(found)
    for said in (
        "7 x 5 to 20 x 9 px",
        "uint16: 2",
        "12 bits used",
        "x: 2, y: 1",
        "2 of 1 to 2 images",
        "organ",
        "1 image files",
    ):
        assert said in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["images"] == 3 and "hashes" not in plain


def test_spacing_and_floats():
    images = [constant(0.25, dtype=np.float32), constant(-2, dtype=np.float32)]
    found = audit(Listed(images, [Record("a"), Record("b")]))
    assert found.spacings_um == {"0.5 x 0.5": 2} and found.bits_used is None and found.value_range == (-2, 0.25)


def test_copies_that_leak():
    records = [
        Record("a", "x", "p1", "train"),
        Record("b", "x", "p1", "train"),
        Record("c", "x", "p2", "test"),
        Record("d", "y", "p2", "test"),
        Record("e", "y", "p3", "test"),
    ]
    images = [constant(v) for v in (1, 1, 2, 1, 3)]
    found = audit(Listed(images, records))
    assert found.duplicates == [["a", "b", "d"]]
    assert [text.split(":")[0] for text in found.leaks] == [
        "identical images in more than one split",
        "identical images in more than one group",
        "identical images in more than one label",
    ]
    assert "LEAK" in render(found) and "a, b, d" in render(found)
    inside = audit(Listed([constant(1), constant(1)], records[:2]))
    assert inside.duplicates == [["a", "b"]] and inside.leaks == []


def test_a_group_on_both_sides_is_a_leak():
    records = [
        Record("a", group="p1", split="train"),
        Record("b", group="p1", split="test"),
        Record("c", group="p2", split="test"),
    ]
    found = audit(Listed([constant(v) for v in (1, 2, 3)], records))
    assert found.leaks == ["groups in more than one split: 1, e.g. p1"]


def test_damaged_files_are_named_and_limited(tmp_path):
    folder_of(tmp_path, 20)
    (tmp_path / "003.png").write_bytes(b"")
    found = audit(open_source(tmp_path))
    assert found.readable == 19 and [name for name, _ in found.damaged] == ["003.png"]
    assert "empty file" in render(found)
    for n in range(1, 30):
        (tmp_path / f"bad{n}.png").write_bytes(b"x")
    with pytest.raises(TooManyDamaged) as caught:
        audit(open_source(tmp_path))
    text = str(caught.value)
    assert "30 of 49" in text and "003.png" in text and "bad19.png" in text and "bad20.png" not in text
    assert "and 10 more" in text
    assert audit(open_source(tmp_path), max_bad=0.7).readable == 19


def test_nan_is_damage():
    images = [constant(1, dtype=np.float32), constant(np.nan, dtype=np.float32)]
    found = audit(Listed(images, [Record("a"), Record("b")]), max_bad=0.5)
    assert [name for name, _ in found.damaged] == ["b"] and "NaN" in found.damaged[0][1]


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(TooManyDamaged):
        audit(open_source(tmp_path), max_bad=1.0)


def test_limit_and_progress(tmp_path):
    source = open_source(folder_of(tmp_path, 20))
    calls = []
    found = audit(source, limit=5, progress=lambda done, total: calls.append((done, total)))
    assert (found.images, found.looked_at) == (20, 5) and "5 looked at" in render(found)
    assert {"000.png", "019.png"} <= found.hashes.keys()
    assert calls == [(n, 5) for n in range(1, 6)]
    assert audit(source, limit=99).looked_at == 20
    with pytest.raises(UsageError):
        audit(source, limit=0)


# --- contact sheet --------------------------------------------------------------------------------


def tile(path, place: int, tile_px: int) -> np.ndarray:
    """The square of the first row at ``place``, below the title."""
    sheet = np.asarray(Image.open(path))
    left = 4 + place * (tile_px + 4)
    return sheet[36 : 36 + tile_px, left : left + tile_px]


def test_eight_bit_images_are_shown_as_they_are(tmp_path):
    images = [constant(v, (3, 4, 4)) for v in (10, 200)]
    path = contact_sheet(Listed(images, [Record("a", "x"), Record("b", "y")]), tmp_path / "new" / "s.png", tile_px=32)
    assert (tile(path, 0, 32) == 10).all() and (tile(path, 1, 32) == 200).all()


def test_sixteen_bit_images_fill_the_window(tmp_path):
    ramp = np.linspace(1000, 1200, 1024, dtype=np.uint16).reshape(1, 32, 32)
    shown = tile(contact_sheet(Listed([ramp], [Record("a")]), tmp_path / "s.png", tile_px=32), 0, 32)
    assert shown[0, 0].max() == 0 and shown[-1, -1].min() == 255
    assert abs(int(shown[16, 0, 0]) - 130) < 4  # (1100 - 1002) / (1198 - 1002) of 255


def test_labels_are_drawn_evenly(tmp_path):
    records = [Record(f"a{n}", "many") for n in range(50)] + [Record("b0", "few"), Record("b1", "few")]
    images = [constant(200)] * 50 + [constant(60)] * 2
    path = contact_sheet(Listed(images, records), tmp_path / "s.png", columns=4, rows=1, tile_px=40)
    means = [tile(path, place, 40)[:30].mean() for place in range(4)]
    assert means == [60, 60, 200, 200]


@pytest.mark.parametrize("shape", [(2, 8, 9), (5, 8, 9)])
def test_odd_shapes_and_damaged_files_are_shown(tmp_path, shape):
    source = Listed([constant(9, shape, np.float32)], [Record("a")])
    assert Image.open(contact_sheet(source, tmp_path / "s.png")).width == 8 * 100 + 4
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(b"x")
    broken = tile(contact_sheet(open_source(tmp_path / "d"), tmp_path / "t.png"), 0, 96)
    assert (broken == 255).all()


# --- volumes --------------------------------------------------------------------------------------


class Scans(Listed):
    """Volumes with a place in the patient and a mask."""

    name = "scans"

    def read(self, index):
        mask = np.zeros(self.images[index].shape[1:], np.uint8)
        mask[2:5, 3:6, 4:8] = 2
        affine = np.diag([-0.5, -0.5, 2.0, 1.0])
        return Sample(
            self.images[index],
            self.records[index],
            mask=mask,
            spacing_mm=(2.0, 0.5, 0.5),
            affine=affine,
            modality="CT",
            stored_as="RAS",
        )


def scans(count: int = 2) -> Scans:
    rng = np.random.default_rng(0)
    images = [rng.integers(-1000, 900, (1, 8, 12, 16)).astype(np.int16) for _ in range(count)]
    return Scans(images, [Record(f"s{n}", "sick" if n else "well") for n in range(count)])


def test_volumes_say_how_they_lie():
    found = audit(scans())
    facts = found.volumes
    assert found.axes == 3 and found.smallest_px == (8, 12, 16)
    assert facts.spacings_mm == {"2 x 0.5 x 0.5": 2} and facts.largest_mm == (16, 6, 8)
    assert facts.stored_as == {"RAS": 2} and facts.modalities == {"CT": 2} and facts.largest_tilt == 0
    assert facts.masks == 2 and facts.classes == {"0": 2, "2": 2}
    assert "window -1000 to 1000 HU" in facts.intensity and facts.quantiles[0] < -980
    text = render(found)
    for said in (
        "2 x 0.5 x 0.5: 2 mm (z, y, x)",
        "16 x 6 x 8 mm",
        "RAS: 2; read as LPS",
        "CT: 2",
        "8 x 12 x 16 voxels",
    ):
        assert said in text
    assert json.loads(json.dumps(found.to_dict()))["volumes"]["masks"] == 2
    assert audit(Listed([constant(0, (1, 4, 5, 6))], [Record("a")])).volumes.stored_as == {"unknown": 1}


def test_three_planes_have_the_shape_that_millimetres_give(tmp_path):
    source = scans(1)
    source.images[0][:] = 0
    source.images[0][0, 7] = 1000  # the top slice: bright, and up in the coronal and sagittal plane
    sheet = np.asarray(Image.open(contact_sheet(source, tmp_path / "s.png"))).astype(int)
    side = (1300 - 4 * 5) // 3
    coronal = sheet[64 + 10 :, 4 + side + 4 : 4 + 2 * side + 4]
    lit = np.argwhere((coronal.min(axis=2) > 240) & (coronal.max(axis=2) - coronal.min(axis=2) < 5))
    assert len(lit) and lit[:, 0].min() < side // 6
    blue = (sheet == (100, 200, 255)).all(axis=2)  # class 2 is outlined
    assert blue.sum() > 100


def test_sheet_of_volumes_names_damage_and_needs_no_place(tmp_path):
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "a.npy", np.arange(6 * 7 * 8).reshape(6, 7, 8))
    (tmp_path / "d" / "b.npy").write_bytes(b"x")
    assert Image.open(contact_sheet(open_source(tmp_path / "d"), tmp_path / "s.png")).width > 1000
