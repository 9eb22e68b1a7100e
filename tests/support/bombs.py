"""Small files that claim, or unpack to, gigabytes. Nothing large is built: packed zeros are written block by block."""

import gzip
import io
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import imagecodecs
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage

from made_slides import texture, write_dicom, write_slide
from slide_formats import write_svs
from volume_files import change, counted, set_pixels, slice_header, write_frames, write_series

MIB, GIB = 2**20, 2**30
SIDE = 13_000  # of an image of 507 MB in RGB, below the limit of pixels
NRRD = "NRRD0004\ntype: uchar\nsizes: 1000 1000 1000\nencoding: {}\n\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 1000 1000 1000\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"


def deflated_zeros(count: int) -> bytes:
    """Raw deflate data of about ``count`` zero bytes: one block of 1 MiB, repeated."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = stream.compress(bytes(MIB)) + stream.flush(zlib.Z_FULL_FLUSH)
    return block * -(-count // MIB) + b"\x03\0"


def zlib_zeros(count: int) -> bytes:
    return b"\x78\xda" + deflated_zeros(count) + bytes(4)


def gzip_zeros(start: bytes, count: int) -> bytes:
    """gzip data of ``start`` and zeros after it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    first = stream.compress(start) + stream.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"", mtime=0)[:10] + first + deflated_zeros(count) + bytes(8)


def write_zip(path: Path, name: str, start: bytes, count: int, extra: dict[str, bytes] | None = None) -> Path:
    """A zip with one deflated member of ``start`` and ``count`` zero bytes, as its directory says, and others."""
    with zipfile.ZipFile(path, "w") as archive:
        for other, data in (extra or {}).items():
            archive.writestr(other, data)
        with archive.open(zipfile.ZipInfo(name), "w") as member:  # stored; the directory is corrected below
            stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
            member.write(stream.compress(start) + stream.flush(zlib.Z_FULL_FLUSH) + deflated_zeros(count))
        info = archive.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(start) + count
        offset = info.header_offset
    with path.open("r+b") as file:
        file.seek(offset + 8)
        file.write(struct.pack("<H", zipfile.ZIP_DEFLATED))
    return path


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- images ---------------------------------------------------------------------------------------


def png(path: Path, side: int, bits: int = 8, colour: int = 2) -> Path:
    row = 1 + side * (3 if colour == 2 else 1) * bits // 8
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)), (b"IDAT", zlib_zeros(row * side))]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)
    return path


def tiff(path: Path, shape: tuple[int, ...], compression: str = "zlib", packed: bytes | None = None, **more) -> Path:
    """A TIFF whose pages are one strip of zeros each, packed."""
    plane = int(np.prod(shape[-3:] if shape[-1] == 3 else shape[-2:]))
    pages = int(np.prod(shape)) // plane
    body = zlib_zeros(plane) if packed is None else packed
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    rows = shape[-3] if shape[-1] == 3 else shape[-2]
    tifffile.imwrite(
        path,
        (body for _ in range(pages)),
        shape=shape,
        dtype=np.uint8,
        compression=compression,
        photometric=photometric,
        rowsperstrip=rows,
        **more,
    )
    return path


def sparse_tiff(path: Path, side: int = SIDE, tile: int = 1024) -> Path:
    """Tiles that are not stored at all."""
    tiles = math.ceil(side / tile) ** 2
    tifffile.imwrite(
        path,
        (b"0" for _ in range(tiles)),
        shape=(side, side),
        dtype=np.uint8,
        compression="zlib",
        tile=(tile, tile),
        photometric="minisblack",
    )
    with tifffile.TiffFile(path) as file:
        counts = file.pages.first.tags["TileByteCounts"]
    with path.open("r+b") as file:
        file.seek(counts.valueoffset)
        file.write(bytes(counts.valuebytecount))
    return path


def encoded(path: Path, kind: str, places: dict[int, bytes], image: Image.Image | None = None, **options) -> Path:
    """A small image of Pillow, some bytes of which are changed."""
    buffer = io.BytesIO()
    (image or Image.new("RGB", (16, 16))).save(buffer, kind, **options)
    data = bytearray(buffer.getvalue())
    for at, value in places.items():
        data[at : at + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def jpeg(path: Path, side: int, scans: int = 1) -> Path:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "JPEG", progressive=scans > 1)
    data = bytearray(buffer.getvalue())
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    last = data.rfind(b"\xff\xda")
    path.write_bytes(bytes(data[:last] + data[last:-2] * scans + data[-2:]))
    return path


def jpeg_2000(side: int = 16) -> bytes:
    data = bytearray(imagecodecs.jpeg2k_encode(np.zeros((16, 16), np.uint8), level=0, codecformat="j2k"))
    start = data.find(b"\xff\x4f\xff\x51")
    data[start + 8 : start + 16] = struct.pack(">II", side, side)
    return bytes(data)


def dicom_image(path: Path, side: int) -> Path:
    header = slice_header("1.2", "1.3")
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    set_pixels(header, np.zeros((16, 16), np.int16))
    header.Rows = header.Columns = side
    header.save_as(path)
    return path


# --- volumes --------------------------------------------------------------------------------------


def nifti(path: Path, shape: tuple[int, int, int], count: int) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"], header["sform_code"] = 352, b"n+1", 1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    path.write_bytes(gzip_zeros(bytes(header.binaryblock) + bytes(4), count))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def packed_tar(path: Path, stream: Callable[[bytes], bytes]) -> Path:
    """A tar of one image that is 2 GiB long, compressed as streams one after the other."""
    info = tarfile.TarInfo("a.png")
    info.size = 2 * GIB
    path.write_bytes(stream(info.tobuf()) + stream(bytes(8 * MIB)) * 256)
    return path


def ome(path: Path, text: str) -> Path:
    head = '<?xml version="1.0"?>'
    xml = f'{head}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{text}</OME>'
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), description=xml, metadata=None)
    return path


def pixels_of_ome(size_z: int, planes: str) -> str:
    return (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="16" '
        f'SizeZ="{size_z}" SizeC="1" SizeT="1"><TiffData IFD="0" {planes}/></Pixels></Image>'
    )


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY l0 "lol">{LAUGHS}]><OME>&l9;</OME>'


def laughing(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), description=LAUGHS, metadata=None)
    return path


def dicom_deflated(path: Path) -> Path:
    header = slice_header("1.2", "1.3")
    set_pixels(header, np.zeros((16, 16), np.int16))
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    start = 144 + int.from_bytes(buffer.getvalue()[140:144], "little")
    path.write_bytes(buffer.getvalue()[:start] + deflated_zeros(2 * GIB))
    return path


def dicom_frames(path: Path, frame: bytes, frames: int) -> Path:
    write_frames(path, counted((16, 16, frames)), np.eye(4))
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([frame] * frames)
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.save_as(path)
    return path


def dicom_rows(folder: Path) -> Path:
    write_series(folder, counted((16, 16, 4)), np.eye(4))
    for file in folder.iterdir():
        change(folder, file.name, Rows=16_000, Columns=16_000)
    return folder


# --- slides ---------------------------------------------------------------------------------------


def lying_slide(path: Path, write: Callable[[Path], object], **tags: int) -> Path:
    """A slide whose first page has other numbers in some of its tags."""
    write(path)
    with tifffile.TiffFile(path) as file:
        places = {name: file.pages.first.tags[name] for name in tags}
    with path.open("r+b") as file:
        for name, value in tags.items():
            file.seek(places[name].offset + 2)
            file.write(struct.pack("<HI", 4, 1) + struct.pack("<I", value))
    return path


def svs(path: Path) -> object:
    return write_svs(path, texture(512, 512), um=0.5)


def pyramid(path: Path) -> object:
    return write_slide(path, texture(512, 512), level_px=((256, 256),))


def dicom_slide(path: Path) -> Path:
    write_dicom(path, texture(256, 256), um=0.5)
    data = pydicom.dcmread(path)
    data.TotalPixelMatrixColumns = data.TotalPixelMatrixRows = 2**31
    data.save_as(path)
    return path


# --- features and tables --------------------------------------------------------------------------


def hdf5(path: Path, write: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((4, 2), np.int64)
        write(file)
    return path


def packed_chunks(file: h5py.File) -> None:
    shape = (2**17, 1024)
    data = file.create_dataset("features", shape, np.float32, chunks=(2**12, 1024), compression="gzip")
    chunk = zlib.compress(bytes(2**24), 9)
    for start in range(0, shape[0], 2**12):
        data.id.write_direct_chunk((start, 0), chunk)


def linked(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.txt")
    with h5py.File(other, "w") as target:
        target["features"] = np.zeros((4, 8), np.float32)
    file["features"] = h5py.ExternalLink(other.name, "features")


def stored_elsewhere(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.txt")
    other.write_bytes(bytes(4 * 8 * 4))
    file.create_dataset("features", (4, 8), np.float32, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 8), np.float32)
    layout[:] = h5py.VirtualSource("other.txt", "features", (4, 8))
    file.create_virtual_dataset("features", layout)


def parquet(path: Path, columns: dict[str, pa.Array], repeats: int) -> Path:
    """Equal rows, which Parquet stores in a few bytes."""
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(repeats):
            writer.write_table(table)
    return path


def features_parquet(path: Path) -> Path:
    rows, width = 2**14, 256
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * width, np.float32)), width)
    zeros = pa.array(np.zeros(rows, np.int64))
    return parquet(path, {"x": zeros, "y": zeros, "features": values}, 6)


def small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()
