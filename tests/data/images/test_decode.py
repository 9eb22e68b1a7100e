"""Every image format comes back exactly, in its own number type; nothing damaged passes as an image."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from saccade.data.images.decode import decode, decode_mask
from saccade.data.limits import PIXELS
from saccade.errors import DamagedFile, DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_eight_bit(kind, options, pixels):
    found = decode(encoded(pixels, kind, **options), "x")
    want = first(pixels if kind != "WEBP" or pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))  # no grey WebP
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_jpeg_is_what_pillow_decodes(pixels):
    data = encoded(pixels, "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data, "x"), first(np.asarray(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize("pixels", [GREY16, RGB16], ids=["grey", "rgb"])
def test_sixteen_bit_png_is_exact(pixels):
    found = decode(imagecodecs.png_encode(pixels), "x.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, first(pixels))


TIFFS = {
    "grey8": (GREY, {}),
    "grey16": (GREY16, {}),
    "big endian": (GREY16, {"byteorder": ">"}),
    "signed": (GREY16.astype(np.int16), {}),
    "float": (GREY16.astype(np.float32) / 7, {}),
    "double": (GREY16.astype(np.float64) / 7, {}),
    "rgb8": (RGB, {"photometric": "rgb"}),
    "rgb16": (RGB16, {"photometric": "rgb", "compression": "zlib"}),
    "tiled": (RGB16, {"photometric": "rgb", "tile": (16, 16), "compression": "lzw"}),
}


@pytest.mark.parametrize(("pixels", "options"), TIFFS.values(), ids=TIFFS.keys())
def test_tiff_is_exact(pixels, options):
    found = decode(tiff(pixels, **options), "x.tif")
    assert found.dtype == pixels.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, first(pixels))


CHANNELS = RNG.integers(0, 65536, (5, 20, 30), dtype=np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        tiff(CHANNELS, photometric="minisblack", planarconfig="separate"),
        tiff(CHANNELS.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"),
        tiff(CHANNELS, ome=True, metadata={"axes": "CYX"}),
        tiff(CHANNELS, imagej=True, metadata={"axes": "CYX"}),
        tiff(CHANNELS[:, None], ome=True, metadata={"axes": "CZYX"}),
    ],
    ids=["planar", "interleaved", "ome", "imagej", "ome with one slice"],
)
def test_many_channels(data):
    np.testing.assert_array_equal(decode(data, "x.tif"), CHANNELS)


def test_planar_rgb_tiff():
    data = tiff(RGB16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode(data, "x.tif"), first(RGB16))


def test_white_is_zero_is_turned_round():
    np.testing.assert_array_equal(decode(tiff(GREY, photometric="miniswhite"), "x.tif"), first(255 - GREY))


def test_palette_becomes_colour():
    image = Image.fromarray(RGB).convert("P")
    want = first(np.asarray(image.convert("RGB")))
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode(encoded(image, kind), "x"), want)


def test_one_bit_becomes_0_and_255():
    image = Image.fromarray(GREY > 100)
    for kind, options in (("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})):
        found = decode(encoded(image, kind, **options), "x")
        np.testing.assert_array_equal(found[0], np.where(GREY > 100, 255, 0))
        assert found.dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_colour(kind):
    image = Image.fromarray(np.full((16, 16, 3), (200, 30, 60), np.uint8)).convert("CMYK")
    found = decode(encoded(image, kind), "x")
    assert found.shape == (3, 16, 16)
    assert np.abs(found[:, 8, 8].astype(int) - (200, 30, 60)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"exif": exif} if kind == "PNG" else {"tiffinfo": {274: orientation}}
    data = encoded(RGB, kind, **options)
    marked = Image.fromarray(RGB)
    marked.getexif()[274] = orientation
    np.testing.assert_array_equal(decode(data, "x"), first(np.asarray(ImageOps.exif_transpose(marked))))


def test_orientation_6_turns_clockwise():
    """Independent of Pillow: tag 6 means that the stored first row is the right side of the picture."""
    found = decode(encoded(Image.fromarray(RGB), "TIFF", tiffinfo={274: 6}), "x.tif")
    np.testing.assert_array_equal(found[:, :, -1], first(RGB)[:, 0])


# --- transparency ---------------------------------------------------------------------------------


def with_alpha(colour: np.ndarray, alpha: int) -> np.ndarray:
    return np.concatenate([colour, np.full((*colour.shape[:2], 1), alpha, colour.dtype)], axis=2)


@pytest.mark.parametrize("pixels", [RGB, RGB16], ids=["8 bit", "16 bit"])
def test_opaque_alpha_is_dropped_exactly(pixels):
    opaque = with_alpha(pixels, np.iinfo(pixels.dtype).max)
    for data in (
        imagecodecs.png_encode(opaque),
        tiff(opaque, photometric="rgb", extrasamples=["unassalpha"]),
    ):
        np.testing.assert_array_equal(decode(data, "x"), first(pixels))


@pytest.mark.parametrize("pixels", [RGB, RGB16], ids=["8 bit", "16 bit"])
def test_transparency_is_laid_over_white(pixels):
    top = np.iinfo(pixels.dtype).max
    share = (top // 5) / top
    want = first(np.rint(pixels * share + top * (1 - share)).astype(pixels.dtype))
    see_through = with_alpha(pixels, top // 5)
    np.testing.assert_array_equal(decode(imagecodecs.png_encode(see_through), "x"), want)
    data = tiff(see_through, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode(data, "x"), want)


def test_premultiplied_alpha_is_not_multiplied_again():
    half = (RGB // 2).astype(np.uint8)
    found = decode(tiff(with_alpha(half, 128), photometric="rgb", extrasamples=["assocalpha"]), "x.tif")
    np.testing.assert_array_equal(found, first(half) + 127)


def test_grey_with_alpha():
    data = encoded(Image.fromarray(np.stack([GREY, np.zeros_like(GREY)], axis=2), "LA"), "PNG")
    np.testing.assert_array_equal(decode(data, "x"), np.full((1, 20, 30), 255))


def test_four_channels_without_an_alpha_mark_stay_four():
    four = RNG.integers(0, 256, (4, 20, 30), dtype=np.uint8)
    np.testing.assert_array_equal(decode(tiff(four, photometric="minisblack", planarconfig="separate"), "x.tif"), four)


# --- damaged --------------------------------------------------------------------------------------


def lying_png(side: int, depth: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


WHOLE = {
    "png": encoded(RGB, "PNG"),
    "png16": imagecodecs.png_encode(RGB16),
    "jpeg": encoded(RGB, "JPEG"),
    "webp": encoded(RGB, "WEBP"),
    "bmp": encoded(RGB, "BMP"),
    "tiff": tiff(RGB, photometric="rgb"),
    "tiff zlib": tiff(RGB, photometric="rgb", compression="zlib"),
    "tiff lzw": tiff(RGB, photometric="rgb", compression="lzw"),
    "tiff jpeg": tiff(RGB, photometric="rgb", compression="jpeg"),
}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_a_cut_file_is_damaged(data, share):
    with pytest.raises(DamagedFile, match="slide-7"):
        decode(data[: int(len(data) * share)], "slide-7")


@pytest.mark.parametrize("kind", ["png", "png16", "tiff zlib"])
def test_a_changed_byte_is_noticed(kind):
    data = bytearray(WHOLE[kind])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DamagedFile):
        decode(bytes(data), "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (np.random.default_rng(1).bytes(500), "unknown image format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "x.png"),
        (b"II*\0" + np.random.default_rng(1).bytes(300), "TIFF"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"GIF89a" + bytes(100), "unknown image format"),
        (lying_png(1000, 8), "truncated"),
        (lying_png(1000, 16), "x.png"),
        (lying_png(100_000, 8), f"{PIXELS.default:,}"),
        (lying_png(100_000, 16), f"{PIXELS.default:,}"),
    ],
)
def test_what_is_said_of_broken_bytes(data, said):
    with pytest.raises(DamagedFile) as caught:
        decode(data, "x.png")
    assert said in str(caught.value) and "x.png" in str(caught.value)


def test_a_tiff_that_claims_a_huge_size_is_refused_before_it_is_read():
    data = bytearray(tiff(GREY))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages.first.tags
        for tag in ("ImageWidth", "ImageLength"):
            place = tags[tag].valueoffset
            data[place : place + tags[tag].valuebytecount] = (60_000).to_bytes(tags[tag].valuebytecount, "little")
    with pytest.raises(DamagedFile, match="60,000 x 60,000 pixels"):
        decode(bytes(data), "x.tif")


@pytest.mark.parametrize(
    "data",
    [
        tiff(CHANNELS),
        tiff(CHANNELS, ome=True, metadata={"axes": "ZYX"}),
        encoded(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(RGB)] * 2),
    ],
    ids=["pages", "ome z", "rgb pages"],
)
def test_a_volume_is_said_to_be_one(data):
    with pytest.raises(DataError, match="a stack, not an image"):
        decode(data, "x.tif")


def test_complex_numbers_are_no_image():
    with pytest.raises(DamagedFile, match=r"unsupported (voxel|pixel) type"):
        decode(tiff(GREY.astype(np.complex64)), "x.tif")


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "I;16"])
def test_masks_in_every_disguise(mode, tmp_path):
    truth = np.zeros((12, 10), bool)
    truth[3:7, 2:9] = True
    if mode == "LA":  # drawn into the alpha channel alone
        image = Image.fromarray(np.stack([np.full(truth.shape, 255), truth * 255], axis=-1).astype(np.uint8), "LA")
    elif mode == "I;16":
        image = Image.fromarray(truth.astype(np.uint16) * 3)
    else:
        image = Image.fromarray(truth.astype(np.uint8) * 255).convert(mode)
    image.save(tmp_path / "mask.png")
    assert (decode_mask((tmp_path / "mask.png").read_bytes(), "mask.png") == truth).all()


def test_a_mask_that_says_nothing_is_refused():
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(file, "PNG")
    with pytest.raises(DamagedFile, match=r"mask.png: the mask is the same everywhere"):
        decode_mask(file.getvalue(), "mask.png")


def test_luminance_and_colour_differences_become_rgb_and_lab_is_refused():
    """Plain numbers of YCbCr passed as RGB without a word; CIELAB did as well."""
    rgb = np.full((20, 30, 3), (200, 50, 20), np.uint8)
    apart = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    found = decode(tiff(apart, photometric="ycbcr"), "x.tif")
    np.testing.assert_allclose(found[:, 0, 0], (200, 50, 20), atol=3)
    with pytest.raises(DamagedFile, match=r"x\.tif: unsupported colour space"):
        decode(tiff(apart, photometric="cielab"), "x.tif")


def test_a_thumbnail_before_the_image_is_not_the_image():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB[:4, :4], photometric="rgb", subfiletype=1)
        writer.write(RGB, photometric="rgb")
    np.testing.assert_array_equal(decode(file.getvalue(), "x.tif"), first(RGB))
