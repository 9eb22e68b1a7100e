"""What the guard takes for the same image, nearly the same image, the same patient and nearly the same patient."""

from __future__ import annotations

import io
import unicodedata

import numpy as np
import pytest
from PIL import Image

from saccade import EvaluateOptions, ProtocolConfig, evaluate, pretrain
from saccade.base.contracts import Record
from saccade.data.cache.image_cache import build_cache
from saccade.data.images.fingerprint import bits_of, perceptual_hash, pixel_hash, turned_forms
from saccade.data.open import open_source
from saccade.errors import ContaminationError
from saccade.evaluation import contamination
from saccade.evaluation.contamination import NEAR_BITS, canonical_id


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("007", "7"),
        ("7.0", "7"),
        ("P07", "p7"),
        (" P 7 ", "p  7"),
        ("TCGA-05-4244", "tcga-5-4244"),
        (unicodedata.normalize("NFD", "Jürgen"), unicodedata.normalize("NFC", "jürgen")),
    ],
)
def test_spellings_of_one_patient(first, second):
    assert canonical_id(first) == canonical_id(second)
    records = [Record("a", "x", first), Record("b", "x", second)]
    assert contamination.check_parts(records, ["1", "2"], [0], [1]).groups == [second]
    assert contamination.check_overlap([{"sha256": "3", "group": first}], records, ["1", "2"], [1]).groups == [second]


@pytest.mark.parametrize(("first", "second"), [("1.05", "1.5"), ("70", "7"), ("1.20", "1.2"), ("0", ""), ("a1", "b1")])
def test_other_patients_stay_apart(first, second):
    assert canonical_id(first) != canonical_id(second)


def test_spellings_that_nearly_agree_are_named_and_not_refused():
    records = [Record("a", "x", "P-1"), Record("b", "x", "P1"), Record("c", "x", "P2")]
    assert not contamination.check_parts(records, list("123"), [0], [1, 2])
    (sentence,) = contamination.doubts([{"id": "a", "group": "P-1"}], records, [], [1, 2], where="pretraining")
    assert "1 test groups" in sentence and "'P1'" in sentence and "'P-1'" in sentence


# --- pictures -----------------------------------------------------------------------------------


def pictures(count: int, side: int = 64) -> list[np.ndarray]:
    """Images of random clouds [Y X 3]."""
    images = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        images.append(np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)))
    return images


def recompressed(image: np.ndarray, quality: int = 75) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


CHANGES = {
    "JPEG 95": lambda image: recompressed(image, 95),
    "JPEG 75": recompressed,
    "half": lambda image: resized(image, len(image) // 2),
    "larger": lambda image: resized(image, 3 * len(image) // 2),
    "RGBA": lambda image: np.asarray(Image.fromarray(image).convert("RGBA")),
    "quarter turn": lambda image: np.rot90(image),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "transposed": lambda image: image.transpose(1, 0, 2),
    "crop of 4 px": lambda image: image[4:-4, 4:-4],
    "crop of 4 px at one corner": lambda image: image[4:, 4:],
    "all at once": lambda image: recompressed(np.rot90(image[4:-4, 4:-4])[::-1].copy()),
}


def hash_of(image: np.ndarray) -> str:
    return perceptual_hash(np.ascontiguousarray(image.transpose(2, 0, 1)))


def distance(first: str, second: str) -> int:
    return int((turned_forms(bits_of(first)) ^ bits_of(second)).reshape(8, -1).sum(axis=1).min())


@pytest.mark.parametrize("change", [name for name in CHANGES if "crop" not in name and "once" not in name])
def test_changed_copies_are_near_duplicates(change):
    images = pictures(20)
    files = [{"id": f"{i}.png", "perceptual": hash_of(image), "group": None} for i, image in enumerate(images)]
    records = [Record(f"copy-{i}.png") for i in range(20)]
    copies = [hash_of(CHANGES[change](image)) for image in images]
    pairs = contamination.near_duplicates(files, records, copies, range(20))
    assert pairs == [(f"copy-{i}.png", f"{i}.png") for i in range(20)]


def test_other_pictures_are_no_near_duplicates():
    hashes = [hash_of(image) for image in pictures(80)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > NEAR_BITS


def test_pictures_without_contrast_have_no_hash():
    assert perceptual_hash(np.full((3, 32, 32), 7, np.uint8)) == "" == perceptual_hash(np.zeros((1, 8, 8), np.uint8))
    record = [Record("a")]
    assert contamination.near_duplicates([{"id": "b"}], record, [""], [0]) == []  # a run of version 0.1


def test_pixels_and_not_files_are_compared(tmp_path):
    for suffix in ("bmp", "png"):
        for i, image in enumerate(pictures(6)):
            path = tmp_path / suffix / "ab"[i % 2] / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    bmp, png = (build_cache(open_source(tmp_path / name), cache_px=32) for name in ("bmp", "png"))
    assert bmp.pixel_hashes == png.pixel_hashes and not set(bmp.hashes) & set(png.hashes)
    assert bmp.select(np.array([4])).pixel_hashes == [bmp.pixel_hashes[4]]
    files = [{"sha256": a, "pixels_sha256": b, "group": None} for a, b in zip(bmp.hashes, bmp.pixel_hashes)]
    overlap = contamination.check_overlap(files, png.records, png.hashes, [1], png.pixel_hashes)
    assert overlap.ids == [png.records[1].id]
    old = [{"sha256": digest, "group": None} for digest in bmp.hashes]
    assert not contamination.check_overlap(old, png.records, png.hashes, [1], png.pixel_hashes)


def test_shape_and_type_are_part_of_the_pixels():
    assert pixel_hash(np.zeros((1, 4, 2), np.uint8)) != pixel_hash(np.zeros((1, 2, 4), np.uint8))
    assert pixel_hash(np.zeros((1, 2, 2), "<u2")) == pixel_hash(np.zeros((1, 2, 2), ">u2"))


def test_evaluate_refuses_saved_again_and_names_recompressed(tmp_path):
    images = pictures(24, side=48)
    for folder, change in (("seen", "bmp"), ("again", "png"), ("recompressed", "jpg")):
        for i, image in enumerate(images):
            path = tmp_path / folder / "ab"[i % 2] / f"{folder}-{i}.{change}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    settings = {"model.size_px": 32, "train.batch": 8, "train.steps": 1, "dino.out_dim": 32, "data.split": "all"}
    run = pretrain(tmp_path / "seen", out=tmp_path / "run", backbone="vit_micro_patch8_w32", settings=settings)
    options = EvaluateOptions(protocol=ProtocolConfig(fractions=(1.0,), bootstrap=20), baselines=False)
    with pytest.raises(ContaminationError, match="pretraining used part of the test split"):
        evaluate([run], tmp_path / "again", options=options, out=tmp_path / "out")
    report = evaluate([run], tmp_path / "recompressed", options=options, out=tmp_path / "out")
    (warning,) = report.protocol["warnings"]
    assert "near-duplicates of pretraining" in warning and f"WARNING: {warning}" in report.protocol["text"]


@pytest.mark.data
def test_near_duplicates_of_real_photographs(shared_data):
    """500 tiles, each changed in every way; 5,000 pairs of tiles of different photographs."""
    source = open_source(shared_data / "histology" / "lc25000-lung-224.zip", group="source_tile")
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(source))[:500]
    images = [source.read(int(i)).pixels.transpose(1, 2, 0) for i in chosen]
    hashes = [hash_of(image) for image in images]
    rates = {
        name: np.mean(
            [distance(hash_of(change(image)), original) <= NEAR_BITS for image, original in zip(images, hashes)]
        )
        for name, change in CHANGES.items()
    }
    assert rates == dict.fromkeys(CHANGES, 1.0)
    groups = [source.records[int(i)].group for i in chosen]
    pairs = [(i, j) for i, j in rng.integers(500, size=(20_000, 2)) if groups[i] != groups[j]][:5000]
    assert len(pairs) == 5000 and not any(distance(hashes[i], hashes[j]) <= NEAR_BITS for i, j in pairs)
