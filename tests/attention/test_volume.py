"""Where a model looks in a volume: the map lies where the volume lies, whatever the file's orientation."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from saccade.api import attend
from saccade.attention.options import AttendOptions
from saccade.base.contracts import InputSpec
from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import save_model

ORIENTATIONS = ("RAS", "LPS", "PIR", "SAL", "AIL")
SPACING = (1.5, 1.0, 3.0)  # x, y, z in RAS


def affine_of(axes: str) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An oblique affine, and the shape, of a grid of 24 x 36 x 14 voxels in RAS that is stored along other axes."""
    turn = np.deg2rad(10)
    tilt = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    ras = np.eye(4)
    ras[:3, :3] = tilt @ np.diag(SPACING)
    ras[:3, 3] = (-20, 30, -11)
    orientation = nibabel.orientations.axcodes2ornt(axes)
    image = nibabel.Nifti1Image(np.zeros((24, 36, 14), np.float32), ras).as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), orientation)
    )
    return image.affine, image.shape


def with_ball(path, axes: str, centre_mm: np.ndarray) -> np.ndarray:
    """A volume with a bright ball of 7 mm about a place of the world; returns its affine."""
    affine, shape = affine_of(axes)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = nibabel.affines.apply_affine(affine, voxels)
    near = np.linalg.norm(world - centre_mm, axis=-1) < 7
    noise = np.random.default_rng(0).normal(0, 0.01, shape)
    nibabel.save(nibabel.Nifti1Image((near + noise).astype(np.float32), affine), path)
    return affine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights whose tokens are hardly more than their brightness: alike where the volume is."""
    network = build("resnet10_w8", channels=1, size_px=32, axes=3, options={"stem": "cifar"}, seed=0)
    spec = InputSpec(1, 32, 0.0, 65535.0, (0.0,), (1.0,), axes=3, intensity="robust")
    folder = tmp_path_factory.mktemp("model") / "cnn"
    save_model(folder, network, spec, about={})
    return folder


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    network = build("vit_micro_patch4_w64", channels=1, size_px=16, axes=3, seed=0)
    spec = InputSpec(1, 16, 0.0, 65535.0, (0.0,), (1.0,), axes=3, intensity="robust")
    folder = tmp_path_factory.mktemp("model") / "vit"
    save_model(folder, network, spec, about={})
    return folder


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_a_place_of_the_world_is_the_same_place_of_the_map(axes, transformer, tmp_path):
    """Asked about the ball, the query's patch holds it: by the affine of the written map, in any viewer."""
    centre = nibabel.affines.apply_affine(affine_of("RAS")[0], [9, 21, 6])
    with_ball(tmp_path / "ball.nii.gz", axes, centre)
    found = attend(transformer, tmp_path / "ball.nii.gz")
    z, y, x = np.rint(np.linalg.solve(found.affine, [*centre, 1])[:3]).astype(int)[::-1]
    asked = attend(transformer, tmp_path / "ball.nii.gz", options=AttendOptions(query=f"{z},{y},{x}"))
    np.testing.assert_allclose(asked.world(), centre, atol=1e-3)
    assert asked.unit[z, y, x] > 0.9  # the ball, in the volume as it lies here
    box = asked.found.box(asked.unit.shape)
    inside = [begin - 0.5 <= at <= begin + side + 0.5 for at, begin, side in zip((z, y, x), box[:3], box[3:])]
    assert all(inside)
    written = nibabel.load(asked.save(tmp_path / "map.nii.gz"))
    original = nibabel.load(tmp_path / "ball.nii.gz")
    for corner in ([0, 0, 0], [s - 1 for s in original.shape]):
        place = nibabel.affines.apply_affine(original.affine, corner)
        voxel = nibabel.affines.apply_affine(np.linalg.inv(written.affine), place)
        assert all(-0.01 <= v <= s - 0.99 for v, s in zip(voxel, written.shape))  # the same box of the world
    at = nibabel.affines.apply_affine(np.linalg.inv(written.affine), centre)
    assert np.rint(at).astype(int).tolist() == [x, y, z]


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_tokens_like_the_ball_are_where_the_ball_is(axes, model, tmp_path):
    """The similarity to the patch in the ball, read from the NIfTI in world coordinates, is largest inside it."""
    centre = nibabel.affines.apply_affine(affine_of("RAS")[0], [9, 21, 6])
    with_ball(tmp_path / "ball.nii.gz", axes, centre)
    whole = attend(model, tmp_path / "ball.nii.gz")
    z, y, x = np.rint(np.linalg.solve(whole.affine, [*centre, 1])[:3]).astype(int)[::-1]
    found = attend(model, tmp_path / "ball.nii.gz", options=AttendOptions(query=f"{z},{y},{x}"))
    written = nibabel.load(found.save(tmp_path / "map.nii.gz"))
    values = written.get_fdata()
    world = nibabel.affines.apply_affine(
        written.affine, np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1)
    )
    near = np.linalg.norm(world - centre, axis=-1)
    best = near.reshape(-1)[values.argmax()]
    assert best < 9, f"the largest value lies {best:.1f} mm away"
    assert values[near < 5].mean() > values[near > 16].mean()


def test_files_and_words(transformer, tmp_path):
    with_ball(tmp_path / "ball.nii.gz", "RAS", np.array([0.0, 50.0, 8.0]))
    found = attend(transformer, tmp_path / "ball.nii.gz", options=AttendOptions(query="cls"))
    assert "RAS" in found.text() and found.to_dict()["grid"] == [4, 4, 4]
    with Image.open(found.save(tmp_path / "map.png")) as picture:
        assert picture.width > 4 * 160
    rows = found.save(tmp_path / "map.csv").read_text().splitlines()
    assert rows[0] == "head,slice,row,column,weight" and len(rows) == 1 + 2 * 64
    total = sum(float(row.split(",")[-1]) for row in rows[1:]) / 2
    assert total == pytest.approx(1 - found.amap.prefix_share.mean(), abs=1e-5)
    one = attend(transformer, tmp_path / "ball.nii.gz", options=AttendOptions(head="1", layer=0, size_px=32))
    assert one.amap.grid == (8, 8, 8) and one.amap.layer == 0
    assert nibabel.load(one.save(tmp_path / "one.nii.gz")).shape == (24, 36, 14)


def test_the_true_mask_gives_the_jaccard_index(transformer, tmp_path):
    affine = with_ball(tmp_path / "ball.nii.gz", "RAS", np.array([0.0, 50.0, 8.0]))
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 36, 14), np.uint8), affine), tmp_path / "mask.nii.gz")
    options = AttendOptions(mask=tmp_path / "mask.nii.gz", threshold=1.0)
    found = attend(transformer, tmp_path / "ball.nii.gz", options=options)
    assert found.jaccard["mean of heads"] == pytest.approx(1.0)


def test_what_cannot_be_asked_of_a_volume(transformer, tmp_path):
    with_ball(tmp_path / "ball.nii.gz", "RAS", np.array([0.0, 50.0, 8.0]))
    path = tmp_path / "ball.nii.gz"
    with pytest.raises(UsageError, match="z,y,x of a volume"):
        attend(transformer, path, options=AttendOptions(query="3,4"))
    with pytest.raises(UsageError, match="outside the volume"):
        attend(transformer, path, options=AttendOptions(query="14,0,0"))
    with pytest.raises(UsageError, match="--size does not fit"):
        attend(transformer, path, options=AttendOptions(size_px=18))
    with pytest.raises(UsageError, match="unknown picture format"):
        attend(transformer, path).save(tmp_path / "map.svg")
    flat = build("vit_micro_patch4_w32", channels=1, size_px=16, seed=0)
    save_model(tmp_path / "flat", flat, InputSpec(1, 16, 0.0, 255.0, (0.0,), (1.0,)), about={})
    with pytest.raises(ModelError, match="is a model of images"):
        attend(tmp_path / "flat", path)
    with_ball(tmp_path / "other.nii.gz", "RAS", np.array([0.0, 50.0, 8.0]))
    with pytest.raises(UsageError, match="attend takes one volume"):
        attend(transformer, tmp_path)
