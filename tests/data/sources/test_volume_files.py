"""What the files of a folder are: images, their masks, and files in other formats."""

import numpy as np
import pytest
from PIL import Image

from saccade.data.audit.images import audit, render
from saccade.data.images.decode import decode
from saccade.data.open import open_source
from saccade.errors import DamagedFile


def save(path, value: int, kind: str | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), value, np.uint8)).save(path, kind)


def test_masks_beside_images_are_not_images(tmp_path):
    """BUSI: ``benign (1)_mask.png`` in the folder of the class; some images have a second mask."""
    for label in ("benign", "malignant"):
        for number in (1, 2):
            save(tmp_path / label / f"{label} ({number}).png", number)
            save(tmp_path / label / f"{label} ({number})_mask.png", 255)
    save(tmp_path / "benign" / "benign (1)_mask_1.png", 255)
    source = open_source(tmp_path)
    assert len(source) == len(source.image_masks) == 4
    assert source.image_masks["benign/benign (1).png"] == ("benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png")
    assert source.read_mask(0).all() and source.read_mask(0).shape == (8, 9)
    assert "5 files are masks of other images, and not images" in render(audit(source))


def test_masks_in_a_folder_beside_the_images_are_not_images(tmp_path):
    """COVID-19 Radiography Database: CLASS/images and CLASS/masks."""
    for label in ("benign", "malignant"):
        for number in (1, 2):
            save(tmp_path / label / "images" / f"{number}.png", number)
            save(tmp_path / label / "masks" / f"{number}.png", 255)
    source = open_source(tmp_path)
    assert [record.label for record in source.records] == ["benign", "benign", "malignant", "malignant"]
    assert all("/images/" in record.id for record in source.records)


def test_a_name_like_a_mask_without_its_image_is_an_image(tmp_path):
    save(tmp_path / "face_mask.png", 1)
    assert len(open_source(tmp_path)) == 1


def test_other_kinds_of_image_are_read_and_the_rest_is_counted(tmp_path):
    for number, (suffix, kind) in enumerate(((".jp2", "JPEG2000"), (".gif", None), (".ppm", None), (".jfif", "JPEG"))):
        save(tmp_path / f"{number}{suffix}", 10 + number, kind)
    (tmp_path / "notes.docx").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    source = open_source(tmp_path)
    assert [round(float(source.read(i).pixels.mean())) for i in range(len(source))] == [10, 11, 12, 13]
    assert all(source.read(i).pixels.shape == (3, 8, 9) for i in range(4))
    report = audit(source)
    assert report.other_files == {".docx": 1} and "not read    .docx: 1" in render(report)


def test_animations_and_deep_colour_in_ppm_are_refused(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DamagedFile, match=r"a\.gif: an animation"):
        decode((tmp_path / "a.gif").read_bytes(), "a.gif")
    with pytest.raises(DamagedFile, match="more than 8 bits"):
        decode(b"P6\n# made here\n2 1\n65535\n" + bytes(12), "a.ppm")
    grey = np.array([[0, 300], [65535, 7]], np.uint16)
    assert np.array_equal(decode(b"P5 2 2 65535\n" + grey.astype(">u2").tobytes(), "a.pgm")[0], grey)
