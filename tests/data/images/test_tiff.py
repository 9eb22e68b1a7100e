"""Bits per sample and photometric interpretation mean the same in images, stacks and slides."""

import struct

import numpy as np
import pytest
import tifffile

from saccade.data.images.decode import decode
from saccade.data.images.tiff import to_samples
from saccade.data.open import open_source
from saccade.data.slides.slide import open_slide
from saccade.data.slides.tiff_reader import TiffReader
from saccade.errors import DamagedFile

RAMP = np.tile(np.arange(16, dtype=np.uint8).repeat(4), (64, 1))
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def packed_tiff(pixels: np.ndarray, bits: int, photometric: int) -> bytes:
    """A grey TIFF of 2 or 4 bits a sample, as libtiff packs it: the first sample in the highest bits."""
    rows, columns = pixels.shape
    per_byte = 8 // bits
    data = np.zeros((rows, columns // per_byte), np.uint8)
    for place in range(per_byte):
        data |= (pixels[:, place::per_byte] << (8 - bits * (place + 1))).astype(np.uint8)
    values = {256: columns, 257: rows, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: rows, 279: data.size}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return (
        struct.pack("<2sHI", b"II", 42, 8 + data.size)
        + data.tobytes()
        + struct.pack("<H", len(values))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_span_the_range_of_eight(bits):
    top = 2**bits - 1
    stored = (RAMP >> (4 - bits)).astype(np.uint8)
    expected = stored * (255 // top)
    assert np.array_equal(decode(packed_tiff(stored, bits, BLACK_IS_ZERO), "a.tif")[0], expected)
    assert np.array_equal(decode(packed_tiff(top - stored, bits, WHITE_IS_ZERO), "a.tif")[0], expected)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_white_is_zero_is_inverted_in_images_stacks_and_slides(tmp_path, kind):
    stored = np.random.default_rng(0).integers(0, 100, (6, 256, 256)).astype(kind)
    if kind == "float32":
        stored /= 100
        inverted = 1 - stored
    else:
        inverted = ~stored
    options = {"photometric": "miniswhite", "metadata": None}
    tifffile.imwrite(tmp_path / "image.tif", stored[0], **options)
    assert np.array_equal(decode((tmp_path / "image.tif").read_bytes(), "image.tif")[0], inverted[0])
    (tmp_path / "stack").mkdir()
    tifffile.imwrite(tmp_path / "stack" / "a.tif", stored, **options)
    assert np.array_equal(open_source(tmp_path / "stack").read(0).pixels[0], inverted)
    if kind == "uint16":
        tifffile.imwrite(tmp_path / "slide.tif", stored[0], tile=(64, 64), **options)
        region = open_slide(tmp_path / "slide.tif").reader.read(0, 0, 0, (256, 256), 0)
        assert np.array_equal(region.pixels[..., 0], inverted[0])


def test_samples_of_12_bits_keep_their_numbers_and_are_inverted_within_them():
    class Page:
        photometric, bitspersample, dtype = tifffile.PHOTOMETRIC.MINISWHITE, 12, np.dtype(np.uint16)

    assert to_samples(np.array([0, 4095], np.uint16), Page).tolist() == [4095, 0]


def blocks(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)


def test_a_smaller_label_before_the_image_is_not_the_image(tmp_path):
    """In images, in slides (of one level and in tiles) and in stacks."""
    image, label = blocks(256, 0), blocks(64, 1)
    path = tmp_path / "labelled.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(label, photometric="rgb", metadata=None)
        file.write(image, photometric="rgb", tile=(64, 64), metadata=None)
    assert np.array_equal(decode(path.read_bytes(), "a.tif"), image.transpose(2, 0, 1))
    region = TiffReader(path).read(0, 0, 0, (256, 256), 0)
    assert np.array_equal(region.pixels, image)


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeZ="1" SizeC="2" SizeT="1">'
    '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>'
    '<TiffData IFD="0" FirstC="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:{a}</UUID></TiffData>'
    '<TiffData IFD="0" FirstC="1" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:{b}</UUID></TiffData>'
    "</Pixels></Image></OME>"
)
UUIDS = {"a": "00000000-0000-4000-8000-000000000001", "b": "00000000-0000-4000-8000-000000000002"}


def write_ome_set(folder) -> np.ndarray:
    """Two channels in two files that name each other."""
    planes = blocks(256, 2)[..., :2].transpose(2, 0, 1)
    for plane, letter in zip(planes, "ab"):
        xml = OME.format(own=UUIDS[letter], **UUIDS).encode()
        options = {"description": xml, "metadata": None, "ome": False, "tile": (64, 64), "photometric": "minisblack"}
        tifffile.imwrite(folder / f"{letter}.ome.tif", np.ascontiguousarray(plane), **options)
    return planes


def test_channels_of_an_ome_set_come_from_their_own_files(tmp_path):
    planes = write_ome_set(tmp_path)
    region = TiffReader(tmp_path / "a.ome.tif").read(0, 0, 0, (256, 256), 0)
    assert np.array_equal(region.pixels.transpose(2, 0, 1), planes)


def test_an_ome_set_without_its_other_files_is_refused(tmp_path):
    write_ome_set(tmp_path)
    with pytest.raises(DamagedFile, match="1 of its 2 planes are in other files"):
        decode((tmp_path / "a.ome.tif").read_bytes(), "a.ome.tif")
    (tmp_path / "b.ome.tif").unlink()
    with pytest.raises(DamagedFile, match="1 of its 2 planes are in other files"):
        TiffReader(tmp_path / "a.ome.tif")


def test_planes_of_an_ome_set_outside_its_folder_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    write_ome_set(tmp_path / "set")
    path = tmp_path / "set" / "a.ome.tif"
    for name in (b"../b.ome.x", b"/b.ome.tif", b"..\\b.tif0"):  # as long as the name they replace
        name = name[:9]
        path.write_bytes(path.read_bytes().replace(b'FileName="b.ome.tif"', b'FileName="' + name + b'"'))
        with pytest.raises(DamagedFile, match="planes outside its folder"):
            TiffReader(path)
        write_ome_set(tmp_path / "set")
