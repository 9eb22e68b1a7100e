"""Files of a second list of public bug reports; docs/reference/formats.md has the table of them."""

import gzip
import io
import struct

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from made_slides import texture
from saccade.data.open import open_source
from saccade.data.slides.tiling import Tiling
from saccade.errors import DamagedFile
from volume_files import counted, write_series

VALUES = counted((5, 6, 7))
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
STACK = np.random.default_rng(0).integers(0, 60000, (12, 20, 24)).astype(">u2")


def test_imagej_stacks_with_a_single_directory(tmp_path):
    """suite2p 135, TIFFStack 7: ImageJ writes stacks above 4 GB with one directory and the planes after it."""
    text = "ImageJ=1.53c\nimages=12\nslices=12\nunit=micron\nspacing=2.0\n"
    file = io.BytesIO()
    options = {"byteorder": ">", "photometric": "minisblack", "metadata": None, "resolution": (2, 2)}
    tifffile.imwrite(file, STACK[:1], description=text, **options)
    data = file.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        start = tiff.pages[0].dataoffsets[0]
    assert start + STACK[:1].nbytes == len(data)
    (tmp_path / "a.tif").write_bytes(data[:start] + STACK.tobytes())
    sample = open_source(tmp_path).read(0)
    assert np.array_equal(sample.pixels[0], STACK) and np.allclose(sample.spacing_mm, (0.002, 0.0005, 0.0005))


def test_imagej_stacks_whose_text_counts_more_planes(tmp_path):
    """TIFFStack 30."""
    text = "ImageJ=1.53c\nimages=20\nslices=20\n"
    tifffile.imwrite(
        tmp_path / "a.tif", STACK, byteorder=">", photometric="minisblack", description=text, metadata=None
    )
    assert np.array_equal(open_source(tmp_path).read(0).pixels[0], STACK)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_whose_suffix_misstates_compression(tmp_path, name):
    """nibabel 1070 and 1128."""
    data = nibabel.Nifti1Image(VALUES, AFFINE).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name == "a.nii" else data)
    assert np.array_equal(np.sort(open_source(tmp_path).read(0).pixels, axis=None), VALUES.ravel())


def test_pixel_spacing_under_another_value_representation(tmp_path):
    """pydicom 828: a GE 7T scanner writes it as UT."""
    folder = write_series(tmp_path / "scan", VALUES, AFFINE)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        del data.PixelSpacing
        data.add_new("PixelSpacing", "UT", "2.5000\\1.5000")
        data.save_as(path)
    assert open_source(tmp_path).read(0).spacing_mm == (3.0, 2.5, 1.5)


@pytest.mark.parametrize("text", [b"0,7500\\0,7500", b"0.7500,0.7500", b"0.7500       "])
def test_pixel_spacing_outside_the_standard_is_refused_with_its_text(tmp_path, text):
    """dcmjs 287, pydicom 173, ITK 6639: decimal commas, a comma between the numbers, one number."""
    folder = write_series(tmp_path / "scan", VALUES, AFFINE)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.PixelSpacing = ["0.7500", "0.7500"]
        data.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"0.7500\\0.7500", text))
    with pytest.raises(DamagedFile, match=r"pixel spacing cannot be read\n.*PixelSpacing 0.75?"):
        open_source(tmp_path).read(0)


def test_exif_after_xmp(tmp_path):
    """pi 8571, sd-scripts 1316: the orientation is in the second APP1 segment."""
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(texture(20, 40)).save(path, exif=exif)
    data, text = path.read_bytes(), b"http://ns.adobe.com/xap/1.0/\0<x/>"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(text) + 2) + text + data[2:])
    assert open_source(tmp_path).read(0).pixels.shape == (3, 40, 20)


def test_a_sheared_sform(tmp_path):
    """SimpleITK 1440, TotalSegmentator 461: ITK refuses such directions; the axes keep their names and lengths."""
    affine = np.diag([1.0, 1, 2, 1])
    affine[0, 1] = 0.02
    nibabel.save(nibabel.Nifti1Image(VALUES, affine), tmp_path / "a.nii")
    assert np.allclose(open_source(tmp_path).read(0).spacing_mm, (2, np.hypot(1, 0.02), 1))


def test_planes_of_colour_stored_separately(tmp_path):
    """imagej2 196, tiatoolbox 804: images with one row a strip, and slides."""
    pixels = texture(600, 700).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, planarconfig="separate", photometric="rgb", rowsperstrip=1)
    assert np.array_equal(open_source(tmp_path).read(0).pixels, pixels)
    folder = tmp_path / "slides"
    folder.mkdir()
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "a.tif", pixels, planarconfig="separate", photometric="rgb", tile=(128, 128), **tags)
    source = open_source(folder, tiling=Tiling(tile_px=64))
    x, y = source.coords[0]
    assert source.mpp == 0.5 and np.array_equal(source.read(0).pixels, pixels[:, y : y + 64, x : x + 64])


@pytest.mark.parametrize("vector", [False, True])
def test_nrrd_of_itk(tmp_path, vector):
    """MONAI 3356, Images.jl 86: space directions in LPS, the vector axis first."""
    values = np.stack([VALUES, VALUES + 1, VALUES + 2]) if vector else VALUES
    kinds, none, three = ("vector ", "none ", "3 ") if vector else ("", "", "")
    header = (
        f"NRRD0004\ntype: short\ndimension: {values.ndim}\nspace: left-posterior-superior\nsizes: {three}5 6 7\n"
        f"space directions: {none}(0.7,0,0) (0,0.8,0) (0,0,2)\nkinds: {kinds}domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values.astype("<i2").tobytes("F"))
    sample = open_source(tmp_path).read(0)
    expected = (values if vector else values[None]).transpose(0, 3, 2, 1)
    assert sample.spacing_mm == (2.0, 0.8, 0.7) and np.array_equal(sample.pixels, expected)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk(tmp_path, name):
    """ImageMagick 6094: colours must not be inverted."""
    image = Image.fromarray(texture(32, 32)).convert("CMYK")
    image.save(tmp_path / name, **({"quality": 100, "subsampling": 0} if name == "a.jpg" else {}))
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(open_source(tmp_path).read(0).pixels.transpose(1, 2, 0) - expected).mean() < 1
