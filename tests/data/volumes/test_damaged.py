"""Volumes that are not whole or not meant: a clear error names the file, before memory is asked for."""

import gzip
import struct
import zipfile
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from saccade.data.audit.images import audit
from saccade.data.cache.image_cache import build_cache
from saccade.data.open import open_source
from saccade.data.volumes import dicom_pixels
from saccade.data.volumes.dicom import read_series
from saccade.data.volumes.intensity import decide_intensity, make_intensity, to_unit
from saccade.data.volumes.volume import read_volume
from saccade.errors import DamagedFile, DataError, MissingDependency, TooManyDamaged, UsageError
from volume_files import change, counted, set_pixels, write_frames, write_nifti, write_series

HUGE = 30000


def refused(path: Path, *said: str, kind: type[Exception] = DamagedFile) -> str:
    """Reading the one volume at ``path`` fails with all of ``said`` in the message."""
    source = open_source(path)
    with pytest.raises(kind) as caught:
        source.read(0)
    text = str(caught.value)
    for word in said:
        assert word in text, text
    return text


def with_header(path: Path, at: int, form: str, *values: float) -> Path:
    """The NIfTI file with other numbers in its header; packed or not."""
    data = path.read_bytes()
    packed = path.suffix == ".gz"
    data = bytearray(gzip.decompress(data) if packed else data)
    struct.pack_into("<" + form, data, at, *values)
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    return path


# --- NIfTI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_sizes_of_a_header_are_compared_with_the_bytes(tmp_path, suffix):
    path = write_nifti(tmp_path / f"scan{suffix}", counted(), np.eye(4))
    refused(with_header(path, 40, "hhhh", 3, 5, 6, 9), f"scan{suffix}", "cut off, or its header is wrong", "892 bytes")
    refused(with_header(path, 40, "hhhh", 3, 5, 6, 3), f"scan{suffix}", "holds more slices than its header says")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_huge_claims_allocate_nothing(tmp_path, suffix, monkeypatch):
    path = write_nifti(tmp_path / f"scan{suffix}", counted(), np.eye(4))
    with_header(path, 40, "hhhh", 3, HUGE, HUGE, HUGE)
    monkeypatch.setattr(gzip.GzipFile, "read", limited(gzip.GzipFile.read))
    refused(path, "30,000 x 30,000 x 30,000 voxels", "at most")
    with_header(path, 40, "hhhh", 3, 1000, 1000, 1000)
    refused(path, f"scan{suffix}", "bytes")


def limited(read):
    """``read`` that may not be asked for more than a megabyte."""

    def wrapped(self, size=-1):
        assert 0 <= size < 2**20, f"{size} bytes were asked for"
        return read(self, size)

    return wrapped


def test_spacing_of_nothing_is_not_guessed(tmp_path):
    image = nibabel.Nifti1Image(counted(), None)
    nibabel.save(image, tmp_path / "a.nii")
    for sides in ((1, 0, 1), (1, 1, -2), (np.nan, 1, 1)):
        refused(with_header(tmp_path / "a.nii", 80, "fff", *sides), "a.nii", "invalid voxel size", "never guessed")
    flat = np.eye(4)
    flat[:3, 2] = (1, 1, 0)
    refused(write_nifti(tmp_path / "a.nii", counted(), flat), "lie in one plane")
    write_nifti(tmp_path / "a.nii", counted(), np.eye(4))
    refused(with_header(tmp_path / "a.nii", 312, "ffff", 0, 0, 0, 0), "invalid voxel size")  # a row of the sform


def test_cut_and_broken_gzip(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise, np.eye(4))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "a.nii.gz", "cut off or damaged", "copy it again")
    path.write_bytes(whole[:100] + b"\0" * 50 + whole[150:])
    refused(path, "a.nii.gz")
    path.write_bytes(whole[:20])
    refused(path, "a.nii.gz")
    path.write_bytes(b"")
    refused(path, "empty file")
    path.write_bytes(b"<html>no such file</html>" * 40)
    refused(path, "not a NIfTI file")


def test_what_is_no_volume(tmp_path):
    refused(write_nifti(tmp_path / "a.nii", counted((5, 6, 1)), np.eye(4)), "not a volume")
    refused(write_nifti(tmp_path / "a.nii", counted((5, 6, 4, 40)), np.eye(4)), "a series of 40 volumes in time")
    refused(write_nifti(tmp_path / "a.nii", counted(kind="complex64"), np.eye(4)), "unsupported voxel type")


# --- NRRD, MetaImage, arrays, stacks --------------------------------------------------------------

NRRD = "NRRD0004\ntype: short\nspace: LPS\nsizes: {sizes}\nspace directions: {directions}\nencoding: {how}\n"
META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {sizes}\nElementSpacing = {sides}\n"
META += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_SHORT\n"
META += "CompressedData = {packed}\nElementDataFile = {data}\n"
ONES = "(1,0,0) (0,1,0) (0,0,1)"


def nrrd(path: Path, body: bytes, sizes="5 6 7", directions=ONES, how="raw") -> Path:
    path.write_bytes(NRRD.format(sizes=sizes, directions=directions, how=how).encode() + b"\n" + body)
    return path


def meta(path: Path, body: bytes, sizes="5 6 7", sides="1 1 1", packed="False", data="LOCAL") -> Path:
    path.write_bytes(META.format(sizes=sizes, sides=sides, packed=packed, data=data).encode() + body)
    return path


BODY = counted().tobytes(order="F")


def test_nrrd(tmp_path):
    path = tmp_path / "a.nrrd"
    nrrd(path, BODY)
    assert open_source(path).read(0).pixels.shape == (1, 7, 6, 5)
    refused(nrrd(path, BODY[:-3]), "a.nrrd", "cut off")
    refused(nrrd(path, BODY, "5 6 5"), "more slices than its header says")
    refused(nrrd(path, BODY, f"{HUGE} {HUGE} {HUGE}"), "30,000 x 30,000")
    refused(nrrd(path, gzip.compress(BODY), "1000 1000 1000", how="gzip"), "claims more than the file can hold")
    refused(nrrd(path, gzip.compress(BODY)[:-60], how="gzip"), "cut off or damaged")
    refused(nrrd(path, BODY, "5 -6 7"), "claims")
    refused(nrrd(path, BODY, "5 six 7"), "invalid number in its header")
    refused(nrrd(path, BODY, directions="(1,0,0) (0,0,0) (0,0,1)"), "invalid voxel size")
    refused(nrrd(path, BODY, how="hex"), "unknown encoding")
    refused(nrrd(path, BODY, "5 42"), "not a volume")
    path.write_bytes(b"NRRD0004\ntype: short\n")
    refused(path, "a.nrrd")


def test_meta(tmp_path):
    path = tmp_path / "a.mha"
    meta(path, BODY)
    assert open_source(path).read(0).spacing_mm == (1, 1, 1)
    refused(meta(path, BODY[:-3]), "a.mha", "cut off")
    refused(meta(path, BODY, sides="1 0 1"), "invalid voxel size")
    refused(meta(path, BODY, sides="1 -1 1"), "invalid voxel size")
    refused(meta(path, BODY, f"{HUGE} {HUGE} {HUGE}"), "30,000 x 30,000")
    refused(meta(path, b"x\x9c123", "1000 1000 1000", packed="True"), "claims more than the file can hold")
    refused(meta(path, b"no zlib", packed="True"), "cut off or damaged")
    refused(meta(path, b"", data="../../secret.raw"), "outside its folder")
    refused(meta(path, b"", data="absent.raw"), "absent.raw", "cannot be read")
    path.write_bytes(b"no header at all")
    refused(path, "not a MetaImage file")


def test_arrays_and_stacks(tmp_path):
    np.save(tmp_path / "a.npy", counted())
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-10])
    with pytest.raises(DamagedFile, match="cut off"):
        open_source(tmp_path).read(0)
    np.save(tmp_path / "a.npy", np.array([{}] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(DamagedFile, match=r"unsupported (voxel|pixel) type"):
        open_source(tmp_path).read(0)
    (tmp_path / "a.npy").unlink()
    tifffile.imwrite(tmp_path / "a.tif", counted((7, 6, 5), "uint16"))
    tifffile.imwrite(tmp_path / "b.tif", counted((6, 5), "uint16"))
    with pytest.raises(DamagedFile, match=r"b.tif: not a volume[\s\S]*folders of their own"):
        open_source(tmp_path).read(1)
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:300])
    with pytest.raises(DamagedFile, match=r"b.tif"):
        open_source(tmp_path).read(1)


def test_npz_claims_are_compared_with_the_bytes(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", images=np.zeros((4, 8, 8, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        data = archive.read("images.npy").replace(b"(4, 8, 8, 8)", b"(4, 8, 8,99)")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("images.npy", data)
    with pytest.raises(DataError, match="claims"):
        open_source(tmp_path / "m.npz")


# --- DICOM ----------------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path) -> Path:
    """Seven slices, 2.5 mm apart."""
    return write_series(tmp_path / "scan", counted(), np.diag([0.7, 1.1, 2.5, 1.0]))


def in_order(folder: Path) -> list[str]:
    """File names from the feet to the head."""
    return sorted((f.name for f in folder.iterdir()), key=lambda n: pydicom.dcmread(folder / n).ImagePositionPatient[2])


def test_missing_slices_are_named(series):
    names = in_order(series)
    (series / names[3]).unlink(), (series / names[4]).unlink()
    text = refused(
        series,
        "2 missing slices",
        "7.50 mm between",
        "2.50 mm, as between the others",
        "missing slices are not interpolated",
    )
    assert names[2] in text and names[5] in text and "5.00 and 12.50" in text


def test_uneven_and_double_slices(series):
    names = in_order(series)
    change(series, names[5], ImagePositionPatient=[0, 0, 12.0])
    refused(series, "uneven distances", names[5])
    change(series, names[5], ImagePositionPatient=[0, 0, 10.0])
    refused(series, "two slices at the same position", names[4], names[5], "keep one volume per folder")


def test_slices_that_differ(series):
    name = in_order(series)[2]
    data = pydicom.dcmread(series / name)
    set_pixels(data, np.zeros((9, 9), np.int16))
    data.save_as(series / name)
    refused(series, "its slices differ in size", "9 x 9: 1", name)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"PixelSpacing": [0, 1]}, "invalid voxel size"),
        ({"PixelSpacing": [1, -1]}, "invalid voxel size"),
        ({"PixelSpacing": None}, "its pixel spacing is unknown"),
        ({"PixelSpacing": [3, 3]}, "differ in pixel spacing"),
        ({"ImagePositionPatient": None}, "its position in the patient is unknown"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not at right angles"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "differ in direction"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "a colour image"),
        ({"Rows": 500}, "pixels cannot be read"),
        ({"Rows": 65535, "Columns": 65535}, "65,535 x 65,535 voxels"),
        ({"NumberOfFrames": 7}, "pixels cannot be read"),
        ({"PixelData": None}, "without pixels"),
    ],
)
def test_headers_of_slices(series, tags, said):
    name = in_order(series)[1]
    change(series, name, **tags)
    refused(series, name, said)


def test_files_that_are_no_dicom(series):
    (series / "broken.dcm").write_bytes(b"\0" * 300)
    found = audit(open_source(series.parent), max_bad=0.6)
    assert found.readable == 1 and "broken.dcm" in found.damaged[0][1]
    with pytest.raises(TooManyDamaged, match="1 of 2"):
        audit(open_source(series.parent))


def test_a_single_slice_is_no_volume(series):
    for name in in_order(series)[1:]:
        (series / name).unlink()
    refused(series, "a single slice, not a volume")


def test_packed_pixels(series, monkeypatch):
    plain = open_source(series).read(0).pixels
    for file in series.iterdir():
        data = pydicom.dcmread(file)
        data.compress(RLELossless)
        data.save_as(file)
    np.testing.assert_array_equal(open_source(series).read(0).pixels, plain)

    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda _: Absent())
    refused(series, "RLE Lossless", 'pip install "saccade[dicom]"', kind=MissingDependency)


class Absent:
    """A decoder of pydicom without a plugin."""

    is_available = False


@pytest.mark.parametrize(
    ("syntax", "codec"),
    [(JPEGLosslessSV1, "ljpeg"), (JPEGLSLossless, "jpegls"), (JPEG2000Lossless, "jpeg2k")],
    ids=["lossless jpeg", "jpeg-ls", "jpeg 2000"],
)
def test_usual_packing_is_read_without_plugins(series, monkeypatch, syntax, codec):
    for file in series.iterdir():  # negative numbers in 12 of 16 bits
        data = pydicom.dcmread(file)
        set_pixels(data, data.pixel_array - 100)
        data.BitsStored, data.HighBit = 12, 11
        data.save_as(file)
    plain = open_source(series).read(0).pixels
    assert plain.min() == -100
    for file in series.iterdir():
        data = pydicom.dcmread(file)
        low = np.ascontiguousarray(data.pixel_array.view(np.uint16) & 0x0FFF)
        packed = getattr(imagecodecs, f"{codec}_encode")(low, **CODING[codec])
        data.PixelData = encapsulate([packed])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(file)
    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda _: Absent())
    np.testing.assert_array_equal(open_source(series).read(0).pixels, plain)
    name = in_order(series)[0]
    data = pydicom.dcmread(series / name)
    data.PixelData = encapsulate([b"no picture" * 9])
    data.save_as(series / name)
    refused(series, name, "pixels cannot be read")


CODING = {
    "ljpeg": {"bitspersample": 12},
    "jpegls": {},
    "jpeg2k": {"level": 0, "reversible": True, "codecformat": "j2k"},
}


def test_what_needs_a_package_stops_the_audit_too(series, monkeypatch):
    for file in series.iterdir():
        data = pydicom.dcmread(file)
        data.compress(RLELossless)
        data.save_as(file)

    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda _: Absent())
    with pytest.raises(MissingDependency):
        audit(open_source(series))


# --- folders, masks, intensity --------------------------------------------------------------------


def test_images_and_volumes_in_one_folder(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", counted(), np.eye(4))
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(
        DataError, match=r"holds images and volumes[\s\S]*1 images, e.g. b.png, and 1 volumes, e.g. a.nii.gz"
    ):
        open_source(tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\na.nii.gz,x\n")
    assert open_source(tmp_path).axes == 3


def test_masks_that_do_not_fit(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    write_nifti(tmp_path / "images" / "a.nii", counted(), np.eye(4))
    write_nifti(tmp_path / "labels" / "a.nii", counted((5, 6, 8), "uint8"), np.eye(4))
    refused(tmp_path, "labels/a.nii", "the mask does not fit its volume")
    write_nifti(tmp_path / "labels" / "a.nii", counted(kind="float32") + 0.5, np.eye(4))
    refused(tmp_path, "labels/a.nii", "whole numbers from 0")


def test_millimetres_need_a_spacing(tmp_path):
    np.savez(tmp_path / "m.npz", images=np.zeros((4, 8, 8, 8), np.uint8))
    with pytest.raises(DataError, match="spacing"):
        build_cache(open_source(tmp_path / "m.npz"), cache_px=8, size_mm=20)


def test_intensity_rules_that_mean_nothing(tmp_path):
    with pytest.raises(UsageError, match="unknown intensity"):
        make_intensity("windw")
    with pytest.raises(UsageError, match="low and high"):
        make_intensity("window", (100, -100))
    with pytest.raises(UsageError, match="no effect"):
        make_intensity("robust", (0, 1))
    with pytest.raises(DamagedFile, match="8-bit volumes"):
        to_unit(counted()[None], make_intensity("range"), "a")
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(DataError, match="no volume can be read"):
        decide_intensity(open_source(tmp_path))
    values = np.full((1, 4, 4, 4), np.nan, np.float32)
    with pytest.raises(DamagedFile, match="NaN"):
        to_unit(values, make_intensity("robust"), "a")


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # what tifffile and pydicom think of it
def test_noise_in_any_file_is_damage_or_a_volume(tmp_path):
    """Bytes changed, dropped and cut off at random: a reader says DamagedFile, or it read a volume, never else."""
    write_nifti(tmp_path / "a.nii", counted(), np.eye(4))
    write_nifti(tmp_path / "b.nii.gz", counted(), np.eye(4))
    nrrd(tmp_path / "c.nrrd", BODY), meta(tmp_path / "d.mha", BODY)
    np.save(tmp_path / "e.npy", counted())
    tifffile.imwrite(tmp_path / "f.tif", counted((7, 6, 5), "uint16"))
    write_frames(tmp_path / "g.dcm", counted(), np.eye(4))
    rng, outcomes, said = np.random.default_rng(0), set(), []
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for _ in range(60):
            data = spoiled(whole, rng)
            try:
                if file.suffix == ".dcm":
                    volume = read_series([file.name], lambda _, data=data: data, "x")
                else:
                    volume = read_volume(data, file.name, lambda _: b"")
                assert volume.pixels.ndim == 4
                outcomes.add("read")
            except DamagedFile as error:
                outcomes.add("damaged")
                said.append(error.what.startswith((file.name, "x")))
    assert outcomes == {"read", "damaged"} and all(said)


def spoiled(whole: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    early = min(len(data), int(rng.choice([60, 352, len(data)])))
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(min(early, len(data))))
        kind = rng.integers(3)
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 5))]
        else:
            data = data[: int(rng.integers(len(data) // 2, len(data))) + 1]
    return bytes(data)
