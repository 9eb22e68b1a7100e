"""Volumes: every format lies as nibabel, SimpleITK, MONAI and pynrrd say, in one order, to 1e-5."""

import gzip
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

from saccade.base.contracts import Sample
from saccade.data.open import open_source
from volume_files import SHAPE, counted, oblique, turned, write_frames, write_nifti, write_series

AFFINES = [*turned()[::5], oblique(0), oblique(1), oblique(2)]


def only(path: Path) -> Sample:
    source = open_source(path)
    assert source.axes == 3 and len(source) == 1
    return source.read(0)


def check_places(sample: Sample, values: np.ndarray, affine: np.ndarray) -> None:
    """Every voxel is at the millimetre where the file has it, and the axes run to left, back and head."""
    assert sample.affine is not None and sample.spacing_mm is not None
    pixels = sample.pixels[0].transpose(2, 1, 0)
    for index in np.random.default_rng(0).integers(0, pixels.shape, (20, 3)):
        was = np.argwhere(values == pixels[tuple(index)])
        assert len(was) == 1
        there = (affine @ [*was[0], 1])[:3]
        np.testing.assert_allclose((sample.affine @ [*index, 1])[:3], there, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(sample.affine[:3, :3], axis=0), sample.spacing_mm[::-1], rtol=1e-6)
    assert nibabel.aff2axcodes(sample.affine) == ("L", "P", "S")


def sitk_lps(image):
    """SimpleITK's own turn to LPS: array [T Y X], spacing (z, y, x), affine in RAS."""
    import SimpleITK

    image = SimpleITK.DICOMOrient(image, "LPS")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return (
        SimpleITK.GetArrayFromImage(image),
        image.GetSpacing()[::-1],
        np.diag([-1, -1, 1, 1]) @ affine,
    )


def check_like_sitk(sample: Sample, image) -> None:
    array, spacing, affine = sitk_lps(image)
    np.testing.assert_allclose(sample.pixels[0], array, rtol=1e-5)
    np.testing.assert_allclose(sample.spacing_mm, spacing, rtol=1e-5)
    np.testing.assert_allclose(sample.affine, affine, atol=1e-4)


# --- NIfTI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_in_all_48_orders(tmp_path, suffix):
    for affine in [*turned(), oblique(3)]:
        sample = only(write_nifti(tmp_path / f"a{suffix}", counted(), affine))
        check_places(sample, counted(), affine)
        canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / f"a{suffix}"))
        np.testing.assert_array_equal(sample.pixels[0].transpose(2, 1, 0)[::-1, ::-1], canonical.dataobj)
        assert sample.pixels.dtype == np.int16 and sample.pixels.flags.c_contiguous


def test_nifti_as_simpleitk_reads_it(tmp_path):
    SimpleITK = pytest.importorskip("SimpleITK")
    for affine in AFFINES:
        path = write_nifti(tmp_path / "a.nii.gz", counted(kind="float32"), affine)
        image = nibabel.load(path)
        image.set_qform(affine), image.set_sform(affine)
        nibabel.save(image, path)
        if np.linalg.det(affine) < 0:  # ITK refuses directions that are a mirror in some versions
            continue
        check_like_sitk(only(path), SimpleITK.ReadImage(str(path)))


@pytest.mark.slow  # MONAI alone takes 20 s to import
def test_nifti_as_monai_reads_it(tmp_path):
    transforms = pytest.importorskip("monai.transforms")
    for affine in AFFINES:
        path = write_nifti(tmp_path / "a.nii.gz", counted(kind="float32"), affine)
        there = transforms.Orientation("LPS")(transforms.LoadImage(image_only=True, ensure_channel_first=True)(path))
        sample = only(path)
        np.testing.assert_allclose(sample.pixels[0], there[0].numpy().transpose(2, 1, 0), rtol=1e-5)
        np.testing.assert_allclose(sample.affine, there.affine.numpy(), atol=1e-5)


def test_nifti_numbers(tmp_path):
    image = nibabel.Nifti1Image(counted(kind="int16"), np.eye(4))
    image.header.set_slope_inter(0.5, -100)
    nibabel.save(image, tmp_path / "a.nii")
    sample, there = only(tmp_path / "a.nii"), nibabel.load(tmp_path / "a.nii").get_fdata()
    assert sample.pixels.dtype == np.float32
    np.testing.assert_allclose(sample.pixels[0].transpose(2, 1, 0)[::-1, ::-1], there, rtol=1e-6)
    for kind in ("uint8", "uint16", "int32", "float64"):
        big = nibabel.Nifti1Image(counted(kind=kind).astype(np.dtype(kind).newbyteorder(">")), np.eye(4))
        nibabel.save(big, tmp_path / "b.nii")
        assert only(tmp_path / "b.nii").pixels.dtype == np.dtype(kind)
        assert sorted(only(tmp_path / "b.nii").pixels.ravel()) == sorted(counted(kind=kind).ravel())


def test_nifti_units_and_channels(tmp_path):
    image = nibabel.Nifti1Image(counted((5, 6, 7, 2)), np.diag([200, 300, 400, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii.gz")
    sample = only(tmp_path / "a.nii.gz")
    assert sample.pixels.shape == (2, 7, 6, 5)
    np.testing.assert_allclose(sample.spacing_mm, (0.4, 0.3, 0.2), rtol=1e-6)
    np.testing.assert_array_equal(sample.pixels[1].transpose(2, 1, 0)[::-1, ::-1], counted((5, 6, 7, 2))[..., 1])


def test_nifti2(tmp_path):
    nibabel.save(nibabel.Nifti2Image(counted(), oblique(4)), tmp_path / "a.nii.gz")
    check_places(only(tmp_path / "a.nii.gz"), counted(), oblique(4))


# --- NRRD and MetaImage ---------------------------------------------------------------------------


def as_sitk(values: np.ndarray, affine: np.ndarray):
    SimpleITK = pytest.importorskip("SimpleITK")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sides = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(sides.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / sides).ravel().tolist())
    return image


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_nrrd_and_meta_as_simpleitk_writes_them(tmp_path, name, packed):
    SimpleITK = pytest.importorskip("SimpleITK")
    for affine in AFFINES:
        if np.linalg.det(affine) < 0:
            affine = affine @ np.diag([-1, 1, 1, 1])
        image = as_sitk(counted(kind="float32"), affine)
        SimpleITK.WriteImage(image, str(tmp_path / name), packed)
        sample = only(tmp_path / name)
        check_like_sitk(sample, image)
        check_places(sample, counted(kind="float32"), affine)


def test_header_and_data_apart_are_one_volume_of_a_folder(tmp_path):
    SimpleITK = pytest.importorskip("SimpleITK")
    for name in ("a.mhd", "b.nhdr"):
        SimpleITK.WriteImage(as_sitk(counted(), np.eye(4)), str(tmp_path / name))
    source = open_source(tmp_path)
    assert [record.id for record in source.records] == ["a.mhd", "b.nhdr"]
    np.testing.assert_array_equal(source.read(0).pixels, source.read(1).pixels)
    assert source.content_hash(0) != source.content_hash(1)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
def test_nrrd_as_pynrrd_writes_it(tmp_path, encoding, space):
    nrrd = pytest.importorskip("nrrd")
    affine = oblique(5)
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3], "encoding": encoding}
    nrrd.write(str(tmp_path / "a.nrrd"), counted(kind=">i2"), header)
    signs = {"left-posterior-superior": (-1, -1, 1), "right-anterior-superior": (1, 1, 1), "LAS": (-1, 1, 1)}[space]
    check_places(only(tmp_path / "a.nrrd"), counted(), np.diag([*signs, 1.0]) @ affine)


def test_nrrd_channels_first_and_without_space(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    values = counted((2, 5, 6, 7))
    nan = np.full(3, np.nan)
    header = {"space": "LPS", "space directions": np.array([nan, *np.diag([1.0, 2.0, 3.0])]), "kinds": ["list"]}
    nrrd.write(str(tmp_path / "a.nrrd"), values, header | {"kinds": ["list", "domain", "domain", "domain"]})
    sample = only(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(sample.pixels, values.transpose(0, 3, 2, 1))
    assert sample.spacing_mm == (3, 2, 1)
    nrrd.write(str(tmp_path / "b.nrrd"), counted(), {"spacings": [1.0, 2.0, 3.0]})
    sample = only(tmp_path / "b.nrrd")
    assert sample.spacing_mm == (3, 2, 1) and sample.affine is None
    np.testing.assert_array_equal(sample.pixels[0], counted().transpose(2, 1, 0))


# --- DICOM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", AFFINES, ids=range(len(AFFINES)))
def test_dicom_as_simpleitk_reads_it(tmp_path, affine):
    SimpleITK = pytest.importorskip("SimpleITK")
    write_series(tmp_path / "s", counted(), affine)
    sample = only(tmp_path / "s")
    check_places(sample, counted(), affine)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    check_like_sitk(sample, reader.Execute())


def test_dicom_spacing_comes_from_positions_and_slopes_are_applied(tmp_path):
    affine = np.diag([0.5, 0.6, 6.5, 1])
    write_series(tmp_path / "ct", counted(), affine, RescaleSlope=1, RescaleIntercept=-1024, Modality="CT")
    sample = only(tmp_path / "ct")
    assert sample.modality == "CT" and sample.pixels.dtype == np.int32
    np.testing.assert_allclose(sample.spacing_mm, (6.5, 0.6, 0.5), rtol=1e-9)  # SliceThickness says 9
    assert sample.pixels.min() == -1024
    write_series(tmp_path / "pet", counted(), affine, RescaleSlope=0.25, RescaleIntercept=1)
    np.testing.assert_allclose(only(tmp_path / "pet").pixels.max(), counted().max() / 4 + 1)


def test_several_series_in_a_folder_are_several_volumes(tmp_path):
    write_series(tmp_path / "x", counted(), np.eye(4), SeriesNumber=2)
    for file in (tmp_path / "x").iterdir():
        file.rename(file.with_name("first-" + file.name))
    write_series(tmp_path / "x", counted((4, 4, 9)), np.eye(4), SeriesNumber=1)
    (tmp_path / "x" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    source = open_source(tmp_path / "x")
    assert [record.id for record in source.records] == ["series-1", "series-2"]
    assert [source.read(i).pixels.shape for i in range(2)] == [(1, 9, 4, 4), (1, *SHAPE[::-1])]
    assert len({record.group for record in source.records}) == 1  # one patient
    text = str(source.records)
    assert "4711" not in text and "Secret" not in text and "1970" not in text


def test_times_and_echoes_of_a_series_are_volumes(tmp_path):
    for echo in (1, 2):
        folder = write_series(tmp_path / f"e{echo}", counted(), np.eye(4), SeriesInstanceUID="1.2.3", EchoNumbers=echo)
        for file in folder.iterdir():
            file.rename(tmp_path / f"e{echo}-{file.name}")
        folder.rmdir()
    source = open_source(tmp_path)
    assert [record.id for record in source.records] == ["series-1", "series-2"]
    np.testing.assert_array_equal(source.read(0).pixels, source.read(1).pixels)


def test_a_multi_frame_file_is_a_volume_of_its_own(tmp_path):
    for name in ("a", "b"):
        write_frames(tmp_path / f"{name}.dcm", counted(), oblique(9))
    source = open_source(tmp_path)
    assert [record.id for record in source.records] == ["series-1", "series-2"]
    check_places(source.read(0), 2 * counted() - 100, oblique(9))


def test_one_file_can_be_named_itself(tmp_path):
    write_frames(tmp_path / "a.dcm", counted(), np.eye(4))
    tifffile.imwrite(tmp_path / "a.tif", counted((7, 6, 5), "uint16"))
    assert only(tmp_path / "a.dcm").pixels.shape == only(tmp_path / "a.tif").pixels.shape == (1, 7, 6, 5)


def test_dicom_without_suffix_and_in_a_zip(tmp_path):
    write_series(tmp_path / "s", counted(), oblique(6))
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in (tmp_path / "s").iterdir():
            archive.write(file, f"case/{file.stem}")
    source = open_source(tmp_path / "s.zip")
    assert [record.id for record in source.records] == ["case"]
    np.testing.assert_array_equal(source.read(0).pixels, only(tmp_path / "s").pixels)


# --- stacks and arrays ----------------------------------------------------------------------------


def test_tiff_stacks_with_and_without_sizes(tmp_path):
    values = counted((7, 6, 5), "uint16")
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6, "PhysicalSizeZ": 2000, "PhysicalSizeZUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "ZYX"} | sizes)
    sample = only(tmp_path)
    np.testing.assert_array_equal(sample.pixels[0], values)
    np.testing.assert_allclose(sample.spacing_mm, (2e-3, 0.6e-3, 0.5e-3))
    (tmp_path / "a.ome.tif").unlink()
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert only(tmp_path).spacing_mm is None
    (tmp_path / "a.tif").unlink()
    about = {"axes": "ZCYX", "spacing": 3.0, "unit": "um"}
    two = np.stack([values, values + 1], axis=1)
    tifffile.imwrite(tmp_path / "a.tif", two, imagej=True, resolution=(2, 4), metadata=about)
    sample = only(tmp_path)
    np.testing.assert_array_equal(sample.pixels, two.transpose(1, 0, 2, 3))
    np.testing.assert_allclose(sample.spacing_mm, (3e-3, 0.25e-3, 0.5e-3))


def test_arrays_in_a_folder_and_medmnist(tmp_path):
    np.save(tmp_path / "a.npy", counted())
    np.save(tmp_path / "b.npy", np.asfortranarray(counted()))
    source = open_source(tmp_path)
    assert source.axes == 3 and source.read(0).spacing_mm is None
    np.testing.assert_array_equal(source.read(0).pixels, source.read(1).pixels)
    np.savez(tmp_path / "m.npz", train_images=np.zeros((3, 8, 8, 8), np.uint8), train_labels=np.zeros((3, 1)))
    assert open_source(tmp_path / "m.npz").axes == 3


# --- folders --------------------------------------------------------------------------------------


def test_masks_lie_beside_and_turn_with_their_volume(tmp_path):
    mask = (counted() % 3).astype(np.uint8)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    write_nifti(tmp_path / "images" / "a.nii.gz", counted(), oblique(7))
    write_nifti(tmp_path / "labels" / "a.nii.gz", mask, oblique(7))
    write_nifti(tmp_path / "images" / "b.nii.gz", counted(), np.eye(4))
    source = open_source(tmp_path)
    assert [record.id for record in source.records] == ["images/a.nii.gz", "images/b.nii.gz"]
    np.testing.assert_array_equal(source.read(0).mask, source.read(0).pixels[0] % 3)
    assert source.read(1).mask is None


def test_decathlon_folders_are_splits(tmp_path):
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "a.nii.gz", counted(kind="uint8"), np.eye(4))
    source = open_source(tmp_path)
    assert [(r.id, r.split, r.label) for r in source.records] == [
        ("imagesTr/a.nii.gz", "train", None),
        ("imagesTs/a.nii.gz", "test", None),
    ]
    assert source.read(0).mask is not None


def test_folders_of_few_volumes_are_patients_and_of_many_classes(tmp_path):
    data = gzip.compress(nibabel.Nifti1Image(counted(), np.eye(4)).to_bytes())
    for name in ("p1/t1", "p1/t2", "p2/t1", "p2/t2"):
        (tmp_path / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "few" / f"{name}.nii.gz").write_bytes(data)
    assert {(r.group, r.label) for r in open_source(tmp_path / "few").records} == {("p1", None), ("p2", None)}
    for name in ("sick", "well"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "many" / name / f"{number}.nii.gz").write_bytes(data)
    assert {(r.group, r.label) for r in open_source(tmp_path / "many").records} == {(None, "sick"), (None, "well")}


def test_a_table_names_volumes(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", counted(), np.eye(4))
    write_series(tmp_path / "case-3", counted(), np.eye(4))
    (tmp_path / "labels.csv").write_text("path,label,group\nb.nii.gz,sick,p1\ncase-3,well,p2\n")
    source = open_source(tmp_path)
    assert [(r.id, r.label, r.group) for r in source.records] == [
        ("b.nii.gz", "sick", "p1"),
        ("case-3", "well", "p2"),
    ]
    assert source.read(1).pixels.shape == (1, 7, 6, 5) and source.unlisted == 1


def test_volumes_in_archives_are_those_of_the_folder(tmp_path):
    (tmp_path / "d" / "images").mkdir(parents=True)
    write_nifti(tmp_path / "d" / "images" / "a.nii.gz", counted(), oblique(8))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "d" / "images" / "a.nii.gz", "images/a.nii.gz")
    one, two = open_source(tmp_path / "d"), open_source(tmp_path / "d.zip")
    assert one.content_hash(0) == two.content_hash(0)
    np.testing.assert_array_equal(one.read(0).pixels, two.read(0).pixels)
