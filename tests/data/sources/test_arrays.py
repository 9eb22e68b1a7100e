"""Arrays: the axes mean what the docs say, labels belong to images, and no pickle is ever opened."""

import numpy as np
import pytest

from saccade.data.open import open_source
from saccade.errors import DataError


def test_medmnist_layout(tmp_path):
    rng = np.random.default_rng(0)
    parts = {f"{p}_images": rng.integers(0, 256, (n, 9, 8), dtype=np.uint8) for p, n in (("train", 3), ("test", 2))}
    np.savez(tmp_path / "m.npz", **parts, train_labels=np.array([[0], [1], [0]]), test_labels=np.array([[1], [0]]))
    source = open_source(tmp_path / "m.npz")
    assert [record.id for record in source.records] == [
        "train/000000",
        "train/000001",
        "train/000002",
        "test/000000",
        "test/000001",
    ]
    assert [(r.split, r.label) for r in source.records] == [
        ("train", "0"),
        ("train", "1"),
        ("train", "0"),
        ("test", "1"),
        ("test", "0"),
    ]
    np.testing.assert_array_equal(source.read(4).pixels, parts["test_images"][1][None])


@pytest.mark.parametrize(
    ("shape", "sample"),
    [
        ((4, 9, 8), (1, 9, 8)),
        ((4, 9, 8, 1), (1, 9, 8)),
        ((4, 9, 8, 3), (3, 9, 8)),
        ((4, 12, 9, 8), (1, 12, 9, 8)),
        ((4, 64, 64, 64), (1, 64, 64, 64)),
        ((4, 8, 3), (1, 8, 3)),
    ],
)
def test_what_the_axes_mean(tmp_path, shape, sample):
    np.save(tmp_path / "s.npy", np.zeros(shape, np.uint16))
    assert open_source(tmp_path / "s.npy").read(0).pixels.shape == sample


@pytest.mark.parametrize("shape", [(4, 3, 9, 8), (4, 1, 9, 8), (4, 9, 8, 4), (4, 9, 8, 2)])
def test_axes_that_could_mean_two_things_are_refused(tmp_path, shape):
    np.save(tmp_path / "s.npy", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="channels or depth"):
        open_source(tmp_path / "s.npy")


def test_plain_keys_and_foreign_byte_order(tmp_path):
    images = np.arange(24, dtype=">u2").reshape(2, 3, 4)
    np.savez(tmp_path / "p.npz", images=images, labels=np.array(["cat", "dog"]))
    source = open_source(tmp_path / "p.npz")
    assert [r.label for r in source.records] == ["cat", "dog"]
    assert source.read(1).pixels.dtype == np.uint16 and source.read(1).pixels.dtype.isnative
    np.testing.assert_array_equal(source.read(1).pixels[0], images[1])


def test_array_hash_depends_on_the_pixels_alone(tmp_path):
    stack = np.zeros((3, 4, 4), np.uint8)
    stack[2] = 1
    np.savez(tmp_path / "p.npz", images=stack)
    source = open_source(tmp_path / "p.npz")
    assert source.content_hash(0) == source.content_hash(1) != source.content_hash(2)


IMAGES = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.array([IMAGES[0], "x"], dtype=object)}, "pickled objects"),
        ({"images": IMAGES, "labels": np.array([{}, 1, 2], dtype=object)}, "pickled objects"),
        ({"images": IMAGES, "labels": np.zeros(2)}, "differ in number"),
        ({"images": IMAGES, "labels": np.float64(3)}, "differ in number"),
        ({"images": np.zeros((3, 4))}, "not a stack of images"),
        ({"images": np.zeros((3, 4, 4), complex)}, "not a stack of images"),
        ({"images": np.zeros((0, 4, 4))}, "no images found"),
        ({"pictures": IMAGES}, "not in the MedMNIST layout"),
        ({"train_images": IMAGES, "test_images": np.zeros((3, 9, 9, 9))}, "different kinds of images"),
    ],
)
def test_arrays_that_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=said) as caught:
        open_source(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["bad.npz", "bad.npy"])
def test_broken_array_files(tmp_path, name):
    np.savez_compressed(
        tmp_path / "bad.npz", images=np.random.default_rng(0).integers(0, 256, (9, 30, 30), dtype=np.uint8)
    )
    np.save(tmp_path / "bad.npy", np.zeros((9, 30, 30), np.uint8))
    whole = (tmp_path / name).read_bytes()
    hurt = bytearray(whole)
    hurt[len(hurt) // 2] ^= 0xFF
    broken = [whole[: len(whole) // 2], b"", b"just some text"] + ([bytes(hurt)] if name.endswith("z") else [])
    for data in broken:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="incomplete array file"):
            open_source(tmp_path / name)


def test_a_header_that_lies_about_its_shape(tmp_path):
    np.save(tmp_path / "lie.npy", np.zeros((3, 4, 4), np.uint8))
    data = (tmp_path / "lie.npy").read_bytes()
    (tmp_path / "lie.npy").write_bytes(data.replace(b"(3, 4, 4), }     ", b"(3, 4, 400000), }"))
    with pytest.raises(DataError, match="incomplete array file"):
        open_source(tmp_path / "lie.npy")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0, 1, np.nan]), ["0", "1", None]),
        (np.array([[2.0], [np.nan], [0.5]], np.float32), ["2", None, "0.5"]),
        (np.array(["a", "", " "]), ["a", None, None]),
        (np.array([b"a", b"", b"b"]), ["a", None, "b"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
    ],
)
def test_missing_labels_are_no_class(tmp_path, labels, expected):
    np.savez(tmp_path / "p.npz", images=np.zeros((3, 6, 5), np.uint8), labels=labels)
    assert [record.label for record in open_source(tmp_path / "p.npz").records] == expected
