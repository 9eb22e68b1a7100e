"""Files of public bug reports, built small by scripts that lie beside the checkout: the right value or refusal each."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data.audit.images import audit, render
from saccade.data.cache.image_cache import build_cache
from saccade.data.open import open_source
from saccade.data.volumes.intensity import decide_intensity, quantiles, to_unit
from saccade.errors import DataError

CASES = Path(os.environ.get("SACCADE_CASES", Path(__file__).parents[3] / "shared" / "cases"))
pytestmark = pytest.mark.skipif(
    not (CASES / "build.sh").is_file(), reason="SACCADE_CASES or ../shared/cases has no build.sh"
)
MICROMETRES = ("micro-sign", "greek-mu", "angstrom", "inch", "mm", "nm", "dm", "pm")
CT = ("c07_ok", "c07_nometa_implicit", "c07_nometa_explicit", "c07_nometa_noext", "c07_nots", "c08_highbits")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    out = tmp_path_factory.mktemp("cases")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", str(CASES / "build.sh"), str(out)], env=os.environ | {"PATH": path}, check=True, capture_output=True
    )
    return out


@pytest.fixture(scope="module")
def slices(cases):
    """[12 32 32]: the stored values of the DICOM cases."""
    return np.load(cases / "dicom_truth.npy")


def volume(folder):
    return open_source(folder).read(0)


def test_names_with_backslashes(cases):
    good, bad = (open_source(cases / "c02" / f"{name}.zip") for name in ("good", "bad"))
    assert good.records == bad.records and {record.split for record in bad.records} == {"train", "test"}


@pytest.mark.parametrize("unit", MICROMETRES)
def test_units_of_ome(cases, unit):
    source = open_source(cases / "c03" / f"{unit}.ome.tif")
    assert np.allclose(source.slides[0].spacing_um, 0.5)


@pytest.mark.parametrize("unit", ["micro-sign", "greek-mu"])
def test_units_of_an_ome_stack(cases, unit):
    assert np.allclose(volume(cases / "c03v" / unit).spacing_mm, (0.002, 0.0005, 0.0005))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_bits_of_grey(cases, bits, kind):
    source = open_source(cases / "c04")
    index = [record.id for record in source.records].index(f"grey{bits}-{kind}.tif")
    with Image.open(cases / "c04" / f"grey{bits}-{kind}.tif") as image:
        assert np.array_equal(source.read(index).pixels[0], np.asarray(image.convert("L")))


def test_a_quaternion_slightly_longer_than_1(cases):
    good, bad = (volume(cases / "c05" / f"{name}.nii") for name in ("good", "bad"))
    assert np.allclose(good.spacing_mm, bad.spacing_mm) and np.isclose(abs(np.linalg.det(bad.affine)), 2.0)
    assert np.array_equal(np.sort(good.pixels, axis=None), np.sort(bad.pixels, axis=None))


@pytest.mark.parametrize("name", ["unit7", "slope-nan", "intent-bad"])
def test_nifti_headers_that_are_read(cases, name):
    good, other = volume(cases / "c05b" / "good"), volume(cases / "c05b" / name)
    assert np.array_equal(good.pixels, other.pixels) and other.spacing_mm == (2.0, 1.0, 1.0)


def test_nifti_headers_that_are_refused_or_named(cases):
    with pytest.raises(DataError, match="invalid scaling"):
        volume(cases / "c05b" / "slope-inf")
    with pytest.raises(DataError, match="NaN or infinite"):
        audit(open_source(cases / "c05b" / "nan"))
    assert volume(cases / "c05b" / "conflict").spacing_mm == (3.0, 1.0, 1.0)  # sform before qform


def test_padding_of_a_ct(cases):
    source = open_source(cases / "c05b" / "padding")
    assert decide_intensity(source).kind == "window" and quantiles(source.read(0).pixels)[0] >= -1000
    unit = to_unit(np.array([10, 70], np.int16).reshape(1, 1, 1, 2), decide_intensity(source), "a").ravel() / 65535
    assert np.isclose(unit[1] - unit[0], 0.03, atol=1e-4)
    assert "padding     -32768: 1" in render(audit(source))


@pytest.mark.parametrize("name", CT)
def test_slices_of_a_ct(cases, slices, name):
    sample = volume(cases / name)
    assert np.array_equal(sample.pixels[0], slices.astype(np.int32) - 1024) and sample.spacing_mm == (3.0, 1.0, 1.0)


def test_signed_numbers_of_12_bits(cases, slices):
    expected = slices.astype(np.int32) - 1000
    assert np.array_equal(volume(cases / "c08_signed12").pixels[0], expected)


@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [("c09_multiframe_ct", 1, -1024), ("c09_rtdose", 1e-3, 0), ("c19_stacks", 1, 0)],
)
def test_frames_by_position(cases, slices, name, scale, shift):
    sample = volume(cases / name)
    assert np.allclose(
        sample.pixels[0], slices.astype(np.float64) * scale + shift, atol=1e-5
    ) and sample.spacing_mm == (3.0, 1.0, 1.0)


def test_frames_from_head_to_feet(cases, slices):
    assert np.array_equal(volume(cases / "c09_nm").pixels[0], slices[::-1].astype(np.int32) - 1024)


def test_two_b_values_are_two_channels(cases, slices):
    assert np.array_equal(volume(cases / "c19_bvalues").pixels, np.stack([slices, slices]))


def test_a_modality_lut(cases, slices):
    table = (np.arange(4096, dtype=np.float64) ** 2 / 4095).astype(np.uint16)
    assert np.array_equal(volume(cases / "c23_modalitylut").pixels[0], table[slices])


@pytest.mark.parametrize("name", ["c10_busi", "c10_covid"])
def test_masks_beside_images_are_not_images(cases, name):
    source = open_source(cases / name)
    assert len(source) == len(source.image_masks) == 60
    assert {record.label for record in source.records} == {"benign", "malignant"}


@pytest.mark.parametrize("name", ["mac.zip", "scans"])
def test_names_that_differ_by_their_unicode_form(cases, name):
    source = open_source(cases / "c14" / name, manifest=cases / "c14" / "nfc.csv")
    assert [record.label for record in source.records] == ["a", "b"] * 6


def test_other_kinds_of_pictures(cases):
    source = open_source(cases / "c15")
    assert len(source) == 20 and audit(source).readable == 20


def test_rgb_in_nifti(cases):
    assert volume(cases / "c16" / "v").pixels.shape == (3, 16, 24, 24)


def test_missing_values_of_bids(cases):
    source = open_source(cases / "c20", manifest=cases / "c20" / "labels.csv")
    assert {record.label for record in source.records} == {None, "a", "b"}
    assert "n/a" not in {record.group for record in source.records}


@pytest.mark.parametrize("name", ["good", "concat", "noext"])
def test_slides_in_dicom(cases, name):
    source, good = open_source(cases / "c22" / name), open_source(cases / "c22" / "good")
    assert np.array_equal(source.read(0).pixels, good.read(0).pixels) and source.mpp == 0.5


@pytest.mark.parametrize("name", ["notype", "shorttype"])
def test_slides_in_dicom_without_a_complete_image_type(cases, name):
    with pytest.raises(DataError, match=r"no complete ImageType; set it to ORIGINAL"):
        open_source(cases / "c22" / name)


def test_narrow_images(cases):
    cache = build_cache(open_source(cases / "c24_pair"), cache_px=48)
    assert cache.batch(np.arange(len(cache))).pixels[0].numel() <= 3 * 384 * 384
