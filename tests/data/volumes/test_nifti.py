"""NIfTI headers that are wrong, unusual or rounded."""

import struct

import nibabel
import numpy as np
import pytest

from saccade.base.contracts import Record, Sample
from saccade.data.audit.images import audit, render
from saccade.data.open import open_source
from saccade.data.volumes.intensity import constant_rim, likely_kind, padding_of, quantiles
from saccade.data.volumes.nifti import read_nifti
from saccade.errors import DamagedFile
from volume_files import counted, write_nifti

VALUES = counted()


def changed(at: int, form: str, *values: float, affine=None, data=VALUES) -> bytes:
    """A NIfTI file with a field of its header overwritten."""
    raw = bytearray(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine).to_bytes())
    struct.pack_into("<" + form, raw, at, *values)
    return bytes(raw)


@pytest.mark.parametrize("offset", [0, 4, 348, 351, -1, float("nan"), float("inf")])
def test_voxels_do_not_begin_inside_the_header(offset):
    with pytest.raises(DamagedFile, match=r"inside its header[\s\S]*352 or more"):
        read_nifti(changed(108, "f", offset), "a.nii")


def test_a_slope_of_nan_or_zero_means_no_scaling_and_an_infinite_one_is_refused():
    for slope in (0.0, float("nan")):
        assert np.array_equal(read_nifti(changed(112, "ff", slope, slope), "a.nii").pixels[0], VALUES.T[:, ::-1, ::-1])
    for slope, intercept in ((float("inf"), 0.0), (2.0, float("nan"))):
        with pytest.raises(DamagedFile, match="invalid scaling"):
            read_nifti(changed(112, "ff", slope, intercept), "a.nii")


def quaternion(b: float, c: float, d: float) -> bytes:
    raw = bytearray(changed(252, "hh", 1, 0))
    struct.pack_into("<ffffff", raw, 256, b, c, d, 10, 20, 30)
    struct.pack_into("<8f", raw, 76, 1, 1, 1, 2, 0, 0, 0, 0)
    return bytes(raw)


def test_a_quaternion_slightly_longer_than_one_is_normalised_as_simpleitk_does(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(quaternion(1.0, 1e-3, 1e-3))
    volume = read_nifti(path.read_bytes(), "a.nii")
    assert volume.spacing_mm == pytest.approx((2, 1, 1), abs=1e-5)
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    direction = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    assert (np.diag([-1, -1, 1]) @ volume.affine[:3, :3]) == pytest.approx(direction, abs=1e-5)
    with pytest.raises(DamagedFile, match="a quaternion of length 2"):
        read_nifti(quaternion(2.0, 0, 0), "a.nii")


def test_a_unit_that_is_not_defined_counts_as_millimetres():
    assert read_nifti(changed(123, "B", 7), "a.nii").spacing_mm == (1, 1, 1)


def test_colour_is_three_channels(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 4), dtype=np.uint8)
    for letters in ("RGB", "RGBA"):
        voxels = np.empty(rgb.shape[:3], [(letter, "u1") for letter in letters])
        for number, letter in enumerate(letters):
            voxels[letter] = rgb[..., number]
        volume = read_nifti(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 1, 1])).to_bytes(), "a.nii")
        assert np.array_equal(volume.pixels, rgb[..., :3].T)


def padded_ct(padding: int = -32768) -> np.ndarray:
    """Air, soft tissue and bone inside a round field."""
    values = np.random.default_rng(0).integers(-1000, 1500, (24, 24, 8)).astype(np.int16)
    y, x = np.mgrid[:24, :24]
    values[(y - 12) ** 2 + (x - 12) ** 2 > 140] = padding
    return values


def test_padding_outside_the_field_of_a_ct_does_not_change_the_rule(tmp_path):
    values = padded_ct()
    assert padding_of(values) == -32768
    low, high = quantiles(values)
    assert (low, high) == quantiles(values[values > -32768]) and low > -1000
    assert likely_kind(Sample(values[None], Record("a"))) == "window"
    write_nifti(tmp_path / "a.nii", values, np.eye(4))
    text = render(audit(open_source(tmp_path)))
    assert "padding     -32768: 1" in text and "16 bits used" in text and "window -1000 to 1000 HU" in text


def test_constant_outer_planes_are_left_out_of_the_quantiles_and_shown(tmp_path):
    inside = np.random.default_rng(0).integers(100, 1500, (12, 12, 8)).astype(np.int16)
    values = np.pad(inside, ((4, 4), (0, 6), (2, 0)))
    values[6, 6, 4] = 0  # inside, the same value counts
    inside = values[4:-4, :-6, 2:]
    assert constant_rim(values) == (0.0, (slice(4, 16), slice(0, 12), slice(2, 10)))
    assert quantiles(values) == quantiles(inside) and constant_rim(inside) is None
    write_nifti(tmp_path / "a.nii", values, np.eye(4))
    assert "rim         0: 1 (value of constant outer planes" in render(audit(open_source(tmp_path)))
    assert constant_rim(np.zeros((4, 4, 4))) is None


@pytest.mark.parametrize("values", [padded_ct(-2000), np.array([0, 1000]), np.array([-5000, 9000, 9001, -4000])])
def test_air_and_ordinary_values_are_not_padding(values):
    assert padding_of(values) is None


def test_extents_of_micrometres_are_shown(tmp_path):
    write_nifti(tmp_path / "a.nii", VALUES, np.diag([0.0005, 0.0005, 0.002, 1]))
    assert "extent      0.014 x 0.003 x 0.0025 mm" in render(audit(open_source(tmp_path)))
