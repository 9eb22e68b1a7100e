"""Rows and columns that a JPEG or JPEG 2000 code stream claims, without decoding it (ISO/IEC 10918-1, 15444-1)."""

from __future__ import annotations

JPEG, JPEG_2000 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC; JPEG-LS
LONGEST_HEADER = 2**16  # bytes of boxes before a JPEG 2000 code stream


def coded_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the first frame header; None where there is none.

    Examples
    --------
    >>> coded_size(bytes.fromhex("ffd8ffc0000b080010002001011100ffd9"))
    (16, 32)
    """
    if data.startswith(JPEG):
        return _jpeg_size(data)
    start = data[:LONGEST_HEADER].find(JPEG_2000)
    if start < 0 or len(data) < start + 24:
        return None
    right, bottom, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    return bottom - top, right - left


def jpeg_2000_pixel_bytes(data: bytes) -> int:
    """Bytes of a pixel, all components, of a code stream that ``coded_size`` knows."""
    start = data[:LONGEST_HEADER].find(JPEG_2000)
    components, depth = int.from_bytes(data[start + 40 : start + 42], "big"), data[start + 42 : start + 43]
    return components * (1 if depth and depth[0] & 0x7F < 8 else 2)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAME_MARKERS:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
