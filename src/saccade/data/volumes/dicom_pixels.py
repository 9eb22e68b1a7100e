"""Pixels of a DICOM file: decompression, polarity, Modality LUT and padding (PS3.3 C.7.6.3, C.11.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, get_decoder

from saccade.data.images.coded_size import coded_size
from saccade.errors import DamagedFile, MissingDependency, SaccadeError, first_line

OWN_DECODERS = {  # of imagecodecs, where pydicom has no plugin: scanners' usual packing can always be read
    "1.2.840.10008.1.2.4.57": "ljpeg_decode",
    "1.2.840.10008.1.2.4.70": "ljpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
}


def padding_range(data: Dataset, slope: float, intercept: float) -> tuple[float, float] | None:
    """Lowest and highest rescaled value of PixelPaddingValue and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2).

    The sign of the tag is that of the pixels: some files write -2000 as 63536 or the other way round.
    """
    value, limit = data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or data.get("ModalityLUTSequence"):
        return None
    limit = limit if isinstance(limit, int) else value
    signed, turns = data.get("PixelRepresentation") == 1, 2 ** int(data.BitsAllocated)
    ends = np.array([value, limit]) % turns
    ends = np.where(signed & (ends >= turns // 2), ends - turns, ends)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        ends = ~ends if signed else (2 ** int(data.BitsStored) - 1) - ends
    low, high = sorted(float(end) * slope + intercept for end in ends)
    return low, high


def stored_pixels(data: Dataset, file: str) -> np.ndarray:
    """The numbers as they are stored; dark is low also where the header says it is the other way round."""
    syntax = data.file_meta.get("TransferSyntaxUID") if "file_meta" in data.__dict__ else None
    decoder = None
    if syntax is not None and syntax.is_compressed:
        decoder = _own_decoder(syntax, file)
        _check_frames(data, file)
    try:
        stored = data.pixel_array if decoder is None else _unpacked(data, decoder)
    except SaccadeError:
        raise
    except Exception as error:
        raise DamagedFile(f"{file}: its pixels cannot be read ({first_line(error)})", hint="copy it again") from error
    if stored.dtype.kind not in "uif":
        raise DamagedFile(f"{file}: unsupported pixel type", got=stored.dtype)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        stored = ~stored if stored.dtype.kind == "i" else (2 ** int(data.BitsStored) - 1) - stored
    if data.get("ModalityLUTSequence") and data.get("RescaleSlope") is None:
        stored = apply_modality_lut(stored, data)  # PS3.3 C.11.1: a table in place of slope and intercept
    return stored


def pixel_bytes(data: Dataset) -> int:
    """Bytes of a pixel after decompression, all samples."""
    return int(data.get("SamplesPerPixel") or 1) * -(-int(data.get("BitsAllocated") or 8) // 8)


def _check_frames(data: Dataset, file: str) -> None:
    """Raise DamagedFile where a packed frame claims another size than the header: it would be decoded at that size."""
    size = (int(data.Rows), int(data.Columns))
    for frame in generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1)):
        claimed = coded_size(frame)
        if claimed is not None and claimed[0] and claimed != size:
            raise DamagedFile(
                f"{file}: its pixels cannot be read",
                got=f"a frame of {claimed[0]:,} x {claimed[1]:,} pixels",
                expected=f"{size[0]:,} x {size[1]:,}",
                hint="copy it again",
            )


def _own_decoder(syntax: Any, file: str) -> str | None:
    """The function of imagecodecs that unpacks; None where pydicom can. Raises MissingDependency where nothing can."""
    try:
        if get_decoder(syntax).is_available:
            return None
    except NotImplementedError:
        raise DamagedFile(f"{file}: unsupported compression for slices", got=syntax.name) from None
    if syntax in OWN_DECODERS:
        return OWN_DECODERS[syntax]
    raise MissingDependency(
        f"{file}: unpacking {syntax.name} needs a package that is not installed", hint='pip install "saccade[dicom]"'
    )


def _unpacked(data: Dataset, decoder: str) -> np.ndarray:
    """[frames Y X] by imagecodecs. Codecs give unsigned numbers of ``BitsStored``; the sign is put back."""
    import imagecodecs

    n_frames = int(data.get("NumberOfFrames") or 1)
    packed = generate_frames(data.PixelData, number_of_frames=n_frames)
    frames = np.stack([getattr(imagecodecs, decoder)(frame) for frame in packed])
    if frames.shape != (n_frames, data.Rows, data.Columns):
        raise ValueError(f"shape {frames.shape} instead of {(n_frames, data.Rows, data.Columns)}")
    if data.PixelRepresentation == 1 and frames.dtype.kind == "u":
        spare = 8 * frames.dtype.itemsize - int(data.BitsStored)
        frames = (frames << spare).view(f"i{frames.dtype.itemsize}") >> spare
    return frames
