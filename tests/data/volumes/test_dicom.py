"""DICOM as older programs, other modalities and multi-frame writers make it, against SimpleITK where it reads them."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from saccade.data.audit.images import audit, render
from saccade.data.images.decode import decode
from saccade.data.open import open_source
from saccade.data.volumes.intensity import quantiles
from saccade.errors import DamagedFile, TooManyDamaged
from volume_files import counted, set_pixels, slice_header, write_series

VALUES = counted((5, 6, 7))
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])  # x and y point to the left and back, as DICOM counts them
EXPECTED = VALUES.transpose(2, 1, 0)


def without_meta(path, implicit: bool):
    """The data elements alone, as programs of before PS3.10 wrote them."""
    data = pydicom.dcmread(path)
    del data.file_meta
    data.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_files_without_a_meta_header(tmp_path, implicit, suffix):
    folder = write_series(tmp_path / "scan", VALUES, AFFINE)
    for path in sorted(folder.iterdir()):
        without_meta(path, implicit)
        path.rename(path.with_suffix(suffix))
    sample = open_source(tmp_path).read(0)
    assert np.array_equal(sample.pixels[0], EXPECTED) and sample.spacing_mm == (3.0, 1.0, 1.0)


def test_a_meta_header_without_transfer_syntax(tmp_path):
    folder = write_series(tmp_path / "scan", VALUES, AFFINE)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        del data.file_meta.TransferSyntaxUID
        data.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert np.array_equal(open_source(tmp_path).read(0).pixels[0], EXPECTED)


@pytest.mark.parametrize(("stored", "tag"), [(-2000, -2000), (-2000, 63536)])
def test_padding_of_the_header_is_left_out_of_the_quantiles(tmp_path, stored, tag):
    values = np.random.default_rng(0).integers(-900, 900, (24, 24, 8)).astype(np.int16)
    values[:, :3] = stored
    folder = write_series(tmp_path / "scan", values, AFFINE)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingValue", "SS" if tag < 0 else "US", tag)
        data.save_as(path)
    sample = open_source(tmp_path).read(0)
    assert sample.padding == (-2000.0, -2000.0)
    measured = values[values > stored]
    expected = np.quantile(measured.astype(np.float32), [0.005, 0.995])
    assert np.allclose(quantiles(sample.pixels, sample.padding), expected)
    assert "padding     -2000: 1" in render(audit(open_source(tmp_path)))


def test_a_range_of_padding_is_rescaled_with_the_pixels(tmp_path):
    folder = write_series(tmp_path / "scan", VALUES, AFFINE, PixelPaddingValue=0, PixelPaddingRangeLimit=9)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = 2, -100
        data.save_as(path)
    sample = open_source(tmp_path).read(0)
    assert sample.padding == (-100.0, -82.0) and quantiles(sample.pixels, sample.padding)[0] > -82


def frames_file(path, values=VALUES, **tags) -> Dataset:
    """A multi-frame file without functional groups."""
    data = slice_header(generate_uid(), generate_uid())
    set_pixels(data, values.transpose(2, 1, 0).reshape(-1, values.shape[0]))
    data.Rows, data.NumberOfFrames, data.PixelSpacing = values.shape[1], values.shape[2], [1, 1]
    for key, value in tags.items():
        setattr(data, key, value)
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


ANGLES, ORIGIN = [1, 0, 0, 0, 1, 0], [0, 0, 10]


def test_frames_by_the_spacing_between_slices(tmp_path):
    frames_file(tmp_path / "a.dcm", ImagePositionPatient=ORIGIN, ImageOrientationPatient=ANGLES, SpacingBetweenSlices=3)
    sample = open_source(tmp_path).read(0)
    assert np.array_equal(sample.pixels[0], EXPECTED) and sample.spacing_mm == (3.0, 1.0, 1.0)
    assert sample.affine[2, 3] == 10


def test_nuclear_medicine_has_its_position_at_the_detector_and_may_count_downwards(tmp_path):
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = ORIGIN, ANGLES
    frames_file(tmp_path / "a.dcm", DetectorInformationSequence=[detector], SpacingBetweenSlices=-3, Modality="NM")
    sample = open_source(tmp_path).read(0)
    assert np.array_equal(sample.pixels[0], EXPECTED[::-1]) and sample.affine[2, 3] == 10 - 6 * 3


@pytest.mark.parametrize("first", [0.0, 10.0])
def test_dose_is_scaled_and_its_frames_lie_where_the_offsets_say(tmp_path, first):
    """Offsets begin with 0 (relative) or are the z of every frame (PS3.3 C.8.8.3.2)."""
    offsets = [first + 2.5 * z for z in range(7)]
    geometry = {"ImagePositionPatient": ORIGIN, "ImageOrientationPatient": ANGLES, "GridFrameOffsetVector": offsets}
    frames_file(tmp_path / "a.dcm", **geometry, DoseGridScaling=1e-3, Modality="RTDOSE")
    sample = open_source(tmp_path).read(0)
    assert sample.spacing_mm == (2.5, 1.0, 1.0) and sample.affine[2, 3] == 10
    assert sample.pixels[0] == pytest.approx(EXPECTED * 1e-3, abs=1e-6)


def test_frames_without_positions_say_what_is_missing(tmp_path):
    frames_file(tmp_path / "a.dcm", ImagePositionPatient=ORIGIN, ImageOrientationPatient=ANGLES)
    with pytest.raises(DamagedFile, match=r"positions of its 7 frames[\s\S]*GridFrameOffsetVector"):
        open_source(tmp_path).read(0)


def test_two_b_values_in_one_file_are_two_channels(tmp_path):
    both = np.concatenate([VALUES, VALUES + 1000], axis=2)
    frames = []
    for number in range(14):
        frame, place, diffusion = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 3.0 * (number % 7)]
        diffusion.DiffusionBValue = float(1000 * (number // 7))
        frame.PlanePositionSequence, frame.MRDiffusionSequence = [place], [diffusion]
        frames.append(frame)
    frames_file(tmp_path / "a.dcm", both, ImageOrientationPatient=ANGLES, PerFrameFunctionalGroupsSequence=frames)
    sample = open_source(tmp_path).read(0)
    assert np.array_equal(sample.pixels, np.stack([EXPECTED, EXPECTED + 1000]))


def test_a_modality_lut_takes_the_place_of_slope_and_intercept(tmp_path):
    table = (np.arange(256) ** 2 // 4).astype(np.uint16)
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [256, 0, 16], "US"
    lut.add_new("LUTData", "OW", table.tobytes())
    write_series(tmp_path / "scan", VALUES.astype(np.uint16), AFFINE, ModalityLUTSequence=[lut])
    assert np.array_equal(open_source(tmp_path).read(0).pixels[0], table[EXPECTED])


def radiograph(path, **tags):
    data = slice_header(generate_uid(), generate_uid())
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    set_pixels(data, VALUES[..., 0].T.astype(np.uint16))
    data.Modality, data.ImagerPixelSpacing = "CR", [0.2, 0.1]
    for key, value in tags.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)


def test_a_radiograph_is_an_image(tmp_path):
    for number in range(2):
        radiograph(tmp_path / f"{number}.dcm", BitsStored=12, HighBit=11)
    source = open_source(tmp_path)
    assert source.axes == 2 and len(source) == 2
    assert np.array_equal(source.read(0).pixels, VALUES[..., 0].T[None]) and source.read(0).spacing_um == (200, 100)
    radiograph(tmp_path / "1.dcm", BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(source.read(1).pixels, 4095 - VALUES[..., 0].T[None])
    assert np.array_equal(decode((tmp_path / "1.dcm").read_bytes(), "1.dcm"), source.read(1).pixels)


def test_a_list_of_damaged_files_names_the_gap(tmp_path):
    folder = write_series(tmp_path / "scan", VALUES, AFFINE)
    positions = {float(pydicom.dcmread(path).ImagePositionPatient[2]): path for path in folder.iterdir()}
    positions[9.0].unlink()
    with pytest.raises(TooManyDamaged, match=r"1 missing slice \(got 6\.00 mm between .*; expected 3\.00 mm"):
        audit(open_source(tmp_path))


def test_series_in_implicit_syntax_are_those_of_simpleitk(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    folder = write_series(tmp_path / "scan", VALUES, AFFINE, RescaleSlope=2, RescaleIntercept=-7)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        data.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=True)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    assert np.array_equal(open_source(tmp_path).read(0).pixels[0], sitk.GetArrayFromImage(sitk.ReadImage(names)))
