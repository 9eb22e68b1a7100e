"""Files that claim or unpack to gigabytes are refused in a second and 100 MB, with an error that names them."""

import bz2
import gzip
import lzma
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import bombs
from bombs import GIB, MIB, SIDE
from made_slides import texture, write_slide
from saccade.data.images.decode import decode
from saccade.data.limits import MEMORY, PIXELS, RATIO, VOXELS
from saccade.data.open import open_source
from saccade.data.slides.tiling import Tiling
from saccade.data.sources.tables import read_table
from saccade.data.volumes.volume import read_volume
from saccade.errors import DamagedFile, DataError, UsageError
from volume_files import write_nifti

SECONDS, MEGABYTES = 1.0, 100
TEN_IMAGES = {"images.npy": bombs.npy(np.zeros((10, 8, 8), np.uint8))}


@dataclass(frozen=True)
class Bomb:
    """``write`` makes the file; ``variable`` is what the error names to raise the limit, "" where nothing helps."""

    name: str
    write: Callable[[Path], object]
    variable: str = RATIO.variable
    message: str = "claims"


def nifti_in_zip(path: Path) -> Path:
    inner = bombs.nifti(path.with_name("inner"), (1000, 1000, 1000), GIB)
    data = inner.read_bytes()
    inner.unlink()
    return bombs.write_zip(path, "z.txt", b"", 8, {"a.nii.gz": data})


BOMBS = [
    # --- arrays
    Bomb(
        "labels-wide.npz",
        lambda path: bombs.write_zip(
            path, "labels.npy", bombs.npy_header((10,), "<U50000000"), 40 * 50_000_000, TEN_IMAGES
        ),
    ),
    Bomb(
        "labels-many.npz",
        lambda path: bombs.write_zip(path, "labels.npy", bombs.npy_header((2 * GIB,), "|u1"), 2 * GIB, TEN_IMAGES),
    ),
    Bomb(
        "images.npz",
        lambda path: bombs.write_zip(path, "images.npy", bombs.npy_header((24, 8192, 8192), "|u1"), 24 * 8192 * 8192),
    ),
    Bomb(
        "long-header.npz",
        lambda path: bombs.write_zip(path, "images.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2 * GIB), 2 * GIB),
        "",
        "incomplete array file",
    ),
    Bomb(
        "empty-images.npz", lambda path: np.savez(path, images=np.zeros((10**9, 0, 0), np.uint8)), "", "without pixels"
    ),
    Bomb(
        "claims.npy",
        lambda path: path.write_bytes(bombs.npy_header((10**6, 10**4, 10**4), "|u1") + bytes(100)),
        "",
        "claims.npy",
    ),
    # --- archives
    Bomb(
        "table.zip",
        lambda path: bombs.write_zip(path, "labels.csv", b"path,label\n", 2 * GIB, {"a.png": bombs.small_png()}),
        MEMORY.variable,
        "a table of",
    ),
    Bomb("image.zip", lambda path: bombs.write_zip(path, "a.png", bombs.small_png(), 2 * GIB)),
    Bomb("volume.zip", nifti_in_zip),
    Bomb("image.tar.gz", lambda path: bombs.packed_tar(path, gzip.compress)),
    Bomb("image.tar.xz", lambda path: bombs.packed_tar(path, lzma.compress)),
    Bomb("image.tar.bz2", lambda path: bombs.packed_tar(path, bz2.compress)),
    # --- images
    Bomb("rgb-507-mb.png", lambda path: bombs.png(path, SIDE)),
    Bomb("rgb-90-mb.png", lambda path: bombs.png(path, 5477)),
    Bomb("grey-16-bit.png", lambda path: bombs.png(path, SIDE, 16, 0)),
    Bomb("one-bit.png", lambda path: bombs.png(path, SIDE, 1, 0)),
    Bomb("palette.png", lambda path: bombs.png(path, SIDE, 8, 3)),
    Bomb("too-many-pixels.png", lambda path: bombs.png(path, 100_000, 1, 0), PIXELS.variable, "more than"),
    Bomb("rgb-507-mb.tif", lambda path: bombs.tiff(path, (SIDE, SIDE, 3))),
    Bomb("rgb-90-mb.tif", lambda path: bombs.tiff(path, (5477, 5477, 3))),
    Bomb("grey-90-mb.tif", lambda path: bombs.tiff(path, (9487, 9487))),
    Bomb("packed-with-lzma.tif", lambda path: bombs.tiff(path, (SIDE, SIDE, 3), "lzma", lzma.compress(bytes(MIB)))),
    Bomb("not-stored.tif", bombs.sparse_tiff),
    Bomb("large.gif", lambda path: bombs.encoded(path, "GIF", {6: struct.pack("<HH", SIDE, SIDE)})),
    Bomb("large.bmp", lambda path: bombs.encoded(path, "BMP", {18: struct.pack("<ii", SIDE, SIDE)})),
    Bomb("large.jpg", lambda path: bombs.jpeg(path, SIDE)),
    Bomb("many-scans.jpg", lambda path: bombs.jpeg(path, 5000, 3000), "", "a JPEG of 3,"),
    Bomb("large.j2k", lambda path: bombs.written(path, bombs.jpeg_2000(SIDE))),
    Bomb("large.pgm", lambda path: bombs.written(path, f"P5 {SIDE} {SIDE} 255\n".encode() + bytes(100))),
    Bomb("picture.dcm", lambda path: bombs.dicom_image(path, SIDE)),
    # --- volumes
    Bomb("zeros.nii.gz", lambda path: bombs.nifti(path, (1000, 1000, 1000), GIB)),
    Bomb("voxels.nii.gz", lambda path: bombs.nifti(path, (30_000, 30_000, 30_000), MIB), VOXELS.variable),
    Bomb(
        "gzip.nrrd",
        lambda path: bombs.written(path, bombs.NRRD.format("gzip").encode() + bombs.gzip_zeros(b"", GIB)),
    ),
    Bomb(
        "bzip2.nrrd",
        lambda path: bombs.written(path, bombs.NRRD.format("bzip2").encode() + bz2.compress(bytes(16 * MIB))),
    ),
    Bomb(
        "packed.mha",
        lambda path: bombs.written(
            path, f"{bombs.META}CompressedData = True\nElementDataFile = LOCAL\n".encode() + bombs.zlib_zeros(GIB)
        ),
    ),
    Bomb("stack.tif", lambda path: bombs.tiff(path, (64, 4096, 4096))),
    Bomb(
        "planes.ome.tif", lambda path: bombs.ome(path, bombs.pixels_of_ome(1, 'PlaneCount="2000000000"')), "", "planes"
    ),
    Bomb("slices.ome.tif", lambda path: bombs.ome(path, bombs.pixels_of_ome(2 * GIB, 'PlaneCount="1"')), "", "planes"),
    Bomb("entities.ome.tif", bombs.laughing, "", "document type definition"),
    Bomb("deflated.dcm", bombs.dicom_deflated),
    Bomb("frames.dcm", lambda path: bombs.dicom_frames(path, bombs.jpeg_2000(SIDE), 4), "", "a frame of"),
    Bomb("series", bombs.dicom_rows, "", "cannot be read"),
    # --- slides
    Bomb("million.svs", lambda path: bombs.lying_slide(path, bombs.svs, ImageWidth=10**6, ImageLength=10**6), ""),
    Bomb("two-billion.svs", lambda path: bombs.lying_slide(path, bombs.svs, ImageWidth=2**31, ImageLength=2**31), ""),
    Bomb("wide.svs", lambda path: bombs.lying_slide(path, bombs.svs, ImageWidth=8_389_632), ""),
    Bomb("wide.tif", lambda path: bombs.lying_slide(path, bombs.pyramid, ImageWidth=8_389_632), ""),
    Bomb(
        "large-tiles.tif", lambda path: bombs.lying_slide(path, bombs.pyramid, TileWidth=2**30), "", "large-tiles.tif"
    ),
    Bomb("empty-tiles.tif", lambda path: bombs.sparse_tiff(path, 40_960, 2048)),
    Bomb("matrix.dcm", bombs.dicom_slide),
    # --- features and tables
    Bomb(
        "claims.h5",
        lambda path: bombs.hdf5(path, lambda file: file.create_dataset("features", (10**7, 1024), "f4", chunks=True)),
    ),
    Bomb("packed.h5", lambda path: bombs.hdf5(path, bombs.packed_chunks)),
    Bomb("link.h5", lambda path: bombs.hdf5(path, bombs.linked), "", "links to other files are not followed"),
    Bomb(
        "elsewhere.h5",
        lambda path: bombs.hdf5(path, bombs.stored_elsewhere),
        "",
        "links to other files are not followed",
    ),
    Bomb("virtual.h5", lambda path: bombs.hdf5(path, bombs.virtual), "", "links to other files are not followed"),
    Bomb("features.parquet", bombs.features_parquet),
    Bomb(
        "labels.parquet",
        lambda path: bombs.parquet(path, {"path": pa.array(np.zeros(2**18, np.int64))}, 64),
    ),
]


def memory_of_process(field: str) -> float:
    """MB of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1000


def read(path: Path) -> None:
    """As every command does: open the data, read one image."""
    if path.suffix == ".parquet":
        from saccade.data.slide_features import load_features

        return read_table(path) if path.stem == "labels" else load_features(path)
    alone = path.is_file() and path.suffix in (".svs", ".npz", ".npy", ".zip", ".gz", ".xz", ".bz2")
    slide = path.suffix == ".svs" or path.name in ("wide.tif", "large-tiles.tif", "empty-tiles.tif", "matrix.dcm")
    source = open_source(path if alone or slide else path.parent, tiling=Tiling(mpp=1.0) if slide else None)
    return source.read(0)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """Imports take time and memory of their own."""
    folder = tmp_path_factory.mktemp("warm")
    for name, write in (("a.h5", bombs.linked), ("b.h5", bombs.virtual)):
        with pytest.raises(DataError):
            read(bombs.hdf5(folder / name, write))
    bombs.svs(folder / "a.svs")
    read(folder / "a.svs")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by /proc")
@pytest.mark.parametrize("bomb", BOMBS, ids=[bomb.name for bomb in BOMBS])
def test_a_bomb_is_refused(bomb, tmp_path, record_property):
    path = tmp_path / "data" / bomb.name
    path.parent.mkdir()
    bomb.write(path)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured anew
    before, start = memory_of_process("VmRSS"), time.process_time()
    with pytest.raises((DataError, DamagedFile)) as caught:
        read(path)
    seconds, megabytes = time.process_time() - start, memory_of_process("VmHWM") - before
    record_property("seconds", round(seconds, 2))
    record_property("megabytes", round(megabytes))
    text = str(caught.value)
    assert bomb.name in text and bomb.message in text and bomb.variable in text, text
    assert seconds < SECONDS and megabytes < MEGABYTES, f"{seconds:.2f} s, {megabytes:.0f} MB"


@pytest.mark.parametrize("limit", [PIXELS, VOXELS, MEMORY, RATIO], ids=lambda limit: limit.variable)
def test_each_limit_is_raised_by_its_variable(limit, monkeypatch):
    assert limit.value == limit.default
    monkeypatch.setenv(limit.variable, str(limit.default + 1))
    assert limit.value == limit.default + 1
    for text in ("many", "0", "-1", "1.5"):
        monkeypatch.setenv(limit.variable, text)
        with pytest.raises(UsageError, match=limit.variable):
            _ = limit.value


def test_a_raised_limit_reads_the_file(tmp_path, monkeypatch):
    path = bombs.png(tmp_path / "large.png", 9000, 8, 0)  # 81 MB of zeros, of which the checksum is missing
    with pytest.raises(DamagedFile, match="set SACCADE_MAX_RATIO=10"):
        decode(path.read_bytes(), path.name)
    monkeypatch.setenv("SACCADE_MAX_RATIO", "2000")
    monkeypatch.setenv("SACCADE_MAX_MIB", "50")
    with pytest.raises(DamagedFile, match="set SACCADE_MAX_MIB=78"):
        decode(path.read_bytes(), path.name)


def test_plausible_files_stay_readable(tmp_path):
    """An empty mask of a CT is packed a thousand times, a slide of one colour 300 times."""
    path = bombs.nifti(tmp_path / "mask.nii.gz", (512, 512, 300), 512 * 512 * 300)
    with pytest.raises(DamagedFile, match="cut off or damaged"):  # by its checksum alone, at the end
        read_volume(path.read_bytes(), path.name, lambda _: b"")
    header = bombs.npy_header((100, 1024, 1024), "|u1")
    path = bombs.write_zip(tmp_path / "masks.zip", "mask.npy", header, 100 * MIB)
    with pytest.raises(DamagedFile, match="Bad CRC-32"):
        open_source(path).read(0)
    write_nifti(tmp_path / "whole.nii.gz", np.zeros((64, 64, 64), np.float64), np.eye(4))
    assert (
        read_volume((tmp_path / "whole.nii.gz").read_bytes(), "whole.nii.gz", lambda _: b"").pixels.shape[1:]
        == (64,) * 3
    )
    pixels = np.full((2048, 2048, 3), 243, np.uint8)
    pixels[:512, :512] = texture(512, 512)
    write_slide(tmp_path / "slide.tif", pixels, level_px=((512, 512),))
    assert open_source(tmp_path / "slide.tif").read(0).pixels.shape[0] == 3
