"""Slides made for tests: real pyramidal TIFF with tiles and resolution tags, small enough to be written in a test."""

from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid
from scipy.ndimage import gaussian_filter

UM = 0.5


def texture(rows: int, columns: int, seed: int = 0, grain: float = 1.0) -> np.ndarray:
    """[Y X 3] uint8: smooth noise in the colours of H&E, without edges that a resampling could hide behind."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((rows, columns)), grain) * 3 * grain
    amount = np.clip(1 + noise, 0.2, 2.5)[..., None]
    return (245 * np.exp(-amount * np.array([0.30, 0.75, 0.35]))).astype(np.uint8)


def on_glass(pixels: np.ndarray, margin: int) -> np.ndarray:
    """The same picture with a white rim."""
    found = np.full_like(pixels, 243)
    found[margin:-margin, margin:-margin] = pixels[margin:-margin, margin:-margin]
    return found


def write_slide(
    path: Path, pixels: np.ndarray, *, um: float | None = UM, level_px: tuple[tuple[int, int], ...] = ()
) -> Path:
    """A tiled TIFF with the levels asked for (rows, columns), each reduced from level 0; ``um`` None: no resolution."""
    tags = {} if um is None else {"resolution": (10_000 / um, 10_000 / um), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", compression="deflate", **tags)
        for rows, columns in level_px:
            small = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR))
            file.write(small, tile=(128, 128), photometric="rgb", compression="deflate", subfiletype=1)
    return path


def with_holes(source: Path, target: Path, tiles: tuple[int, ...], level: int = 0) -> Path:
    """The same slide with the stored bytes of some tiles of one level zeroed: it opens, and they cannot be decoded."""
    data = bytearray(source.read_bytes())
    with tifffile.TiffFile(source) as file:
        page = file.pages[level]
        for tile in tiles:
            start, count = page.dataoffsets[tile], page.databytecounts[tile]
            data[start : start + count] = bytes(count)
    target.write_bytes(bytes(data))
    return target


def write_dicom(path: Path, pixels: np.ndarray, *, um: float, kind: str = "VOLUME", tile: int = 128) -> Path:
    """One level of a slide as VL Whole Slide Microscopy, tiles in order (TILED_FULL), JPEG; all of one series."""
    rows, columns = pixels.shape[:2]
    down, across = -(-rows // tile), -(-columns // tile)
    whole = np.full((down * tile, across * tile, 3), 243, np.uint8)
    whole[:rows, :columns] = pixels
    squares = [whole[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y in range(down) for x in range(across)]
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID, made.Modality = (
        "1.2",
        "1.2.3",
        "1.2.9",
        "SM",
    )
    made.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    made.Rows = made.Columns = tile
    made.NumberOfFrames, made.TotalPixelMatrixRows, made.TotalPixelMatrixColumns = len(squares), rows, columns
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "YBR_FULL_422", 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.DimensionOrganizationType, made.LossyImageCompression = "TILED_FULL", "01"
    made.ImagedVolumeWidth, made.ImagedVolumeHeight = columns * um / 1000, rows * um / 1000
    spacing, shared, light = Dataset(), Dataset(), Dataset()
    spacing.PixelSpacing = [um / 1000, um / 1000]
    shared.PixelMeasuresSequence = [spacing]
    light.OpticalPathIdentifier = "1"
    made.SharedFunctionalGroupsSequence, made.OpticalPathSequence = [shared], [light]
    frames = [
        bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(s), level=95, colorspace="RGB", outcolorspace="YCBCR", subsampling="444"
            )
        )
        for s in squares
    ]
    made.PixelData = encapsulate(frames)
    made["PixelData"].VR = "OB"
    made.save_as(path, enforce_file_format=True)
    return path
