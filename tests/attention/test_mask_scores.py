"""Masks beside images: which files are masks, and how well attention agrees with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from saccade.attention.mask_scores import agreement, check_fits
from saccade.cli.app import app
from saccade.data.open import open_source
from saccade.data.sources.masks import MaskFolder, masks_beside, masks_of
from saccade.errors import DataError
from saccade.viz.patch_maps import AttentionMap


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/1.png", "masks/1.png"),
        ("images/1.jpg", "masks/1.png"),
        ("Images/1.JPG", "Masks/1_mask.png"),
        ("a/images/b/1.jpg", "a/labels/b/1.png"),
        ("train/images/1.jpg", "train/gt/1.png"),
        ("a/1.png", "a/masks/1.png"),
        ("a/1.jpg", "a/1_segmentation.png"),
        ("a/1.png", "a/1_mask_2.png"),
        ("imagesTr/1.nii.gz", "labelsTr/1.nii.gz"),
        ("1.nii.gz", "1_seg.nii"),
    ],
)
def test_layouts_of_masks(image, mask):
    assert masks_of([image, mask, "other/2.png"]) == {image: (mask,)}


@pytest.mark.parametrize(
    "names",
    [
        ("masks/1.png", "no_masks/1.png"),
        ("face_mask.png", "face.txt/1.png"),
        ("a/1.png", "b/1_mask.png"),
        ("labels/1.png", "pictures/1.png"),
        ("mask.png", "_mask.png"),
    ],
)
def test_names_that_are_no_masks(names):
    assert masks_of(names) == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """16 images in CLASS/images of two classes; in CLASS/masks a square each, the first empty."""
    root, draw = tmp_path_factory.mktemp("masked") / "data", np.random.default_rng(0)
    for label in "ab":
        for kind in ("images", "masks"):
            (root / label / kind).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 255, (32, 32), np.uint8) // (1 if label == "a" else 3)
            Image.fromarray(pixels).save(root / label / "images" / f"{number}.png")
            mask = np.zeros((32, 32), np.uint8)
            mask[8:24, 8:24] = 255 * (number > 0)
            Image.fromarray(mask).save(root / label / "masks" / f"{number}.png")
    return root


def test_agreement_with_a_mask_is_1_for_the_mask_itself():
    values = np.zeros((1, 4, 4))
    values[0, 1:3, 1:3] = 0.25
    amap = AttentionMap(values, values[0], (4, 4), (32, 32), None, "attention", np.zeros(1))
    truth = np.zeros((32, 32), bool)
    truth[8:24, 8:24] = True
    assert agreement(amap, truth, 1.0) == {"mean of heads": 1.0}
    with pytest.raises(DataError, match="does not fit"):
        check_fits(truth, np.zeros((3, 32, 64)), "x")


def test_masks_of_one_image(folder):
    image = folder / "a" / "images" / "3.png"
    assert masks_beside(image) == [folder / "a" / "masks" / "3.png"]
    assert MaskFolder(folder / "a" / "masks").masks_of("a/images/3.png") == [folder / "a" / "masks" / "3.png"]
    assert masks_beside(folder / "a" / "masks" / "3.png") == []


def test_attend_takes_the_mask_beside_the_image(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["attend", "random:vit_micro_patch8", str(folder / "a" / "images" / "3.png"), "--size", "32"]
    scores = []
    for masks in ("auto", str(folder / "a" / "masks"), str(folder / "a" / "masks" / "3.png")):
        answer = CliRunner().invoke(app, [*words, "--masks", masks, "--json"])
        assert answer.exit_code == 0, answer.output
        scores.append(json.loads(answer.stdout)["jaccard"]["mean of heads"])
    assert 0 < scores[0] < 1 and scores == [scores[0]] * 3
    answer = CliRunner().invoke(app, [*words[:2], str(folder / "a" / "masks" / "3.png"), "--masks", "auto"])
    assert answer.exit_code != 0 and "has no mask beside the image" in str(answer.exception)


def test_evaluate_compares_attention_with_masks(folder, tmp_path):
    source = open_source(folder)
    assert len(source) == len(source.image_masks) == 16
    words = ["evaluate", "random:vit_micro_patch8", str(folder), "--fractions", "1", "--masks", "auto"]
    answer = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    assert "Jaccard index" in answer.stdout and "difference to" in answer.stdout
    masks = json.loads((tmp_path / "out" / "evaluation.json").read_text())["masks"]
    assert masks["images"] + masks["empty_masks"] > 0 and len(masks["rows"]) == 2
    assert all(0 < row["mean"] < 1 for row in masks["rows"])
    assert "Jaccard index" in (tmp_path / "out" / "evaluation.md").read_text()


def test_data_without_masks_are_refused_before_work(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    words = ["evaluate", "random:vit_micro_patch8", "synthetic:tissue?n=8&size=16", "--masks"]
    answer = CliRunner().invoke(app, [*words, "auto"])
    assert answer.exit_code != 0 and "these data have no masks" in str(answer.exception)
    answer = CliRunner().invoke(app, [*words, str(tmp_path / "none")])
    assert answer.exit_code != 0 and "does not exist" in str(answer.exception)
