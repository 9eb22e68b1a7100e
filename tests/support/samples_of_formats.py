"""One small whole file of every kind that saccade reads, and how each is read."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import nibabel
import numpy as np
import tifffile
import torch
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage
from timm.models.vision_transformer import VisionTransformer

from feature_files import features
from made_slides import texture, write_dicom, write_slide
from saccade.base.contracts import InputSpec
from saccade.data.open import open_source
from saccade.data.slide_features import SlideFeatures, load_features, save_h5
from saccade.data.slides.tiling import Tiling
from saccade.data.sources.tables import read_table
from saccade.features.table import FeatureTable, load_table, save_table
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import load_model, save_model
from slide_formats import jpeg, write_bif, write_mrxs, write_scn, write_svs
from volume_files import counted, set_pixels, slice_header, write_frames, write_nifti, write_series

RGB = texture(48, 40)
TISSUE = texture(256, 256)
NRRD = "NRRD0004\ntype: short\nspace: LPS\nsizes: 5 6 7\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\n\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 5 6 7\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
META += "CompressedData = False\nElementDataFile = LOCAL\n"


@dataclass(frozen=True)
class Kind:
    """A kind of file. ``write`` makes the whole file at a path, ``read`` reads it as the commands do.

    mutable  the file that is damaged, relative to the folder of the path; "" is the path itself
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    mutable: str = ""

    def damaged_file(self, path: Path) -> Path:
        return path.parent / self.mutable if self.mutable else path


def read_folder(path: Path) -> None:
    """The first image or volume of the folder that the file is in."""
    source = open_source(path.parent)
    source.read(0)
    source.content_hash(0)


def read_file(path: Path) -> None:
    source = open_source(path)
    for index in range(min(2, len(source))):
        source.read(index)
        source.content_hash(index)


def read_slide(path: Path) -> None:
    source = open_source(path, tiling=Tiling(mpp=1.0, tile_px=64))
    source.read(0)
    source.content_hash(0)


def pillow(kind: str, **options: Any) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(RGB).save(path, kind, **options)


def png_16_bit(path: Path) -> None:
    path.write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 256))


def tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, RGB, photometric="rgb", **options)


def dicom_picture(path: Path) -> None:
    header = slice_header("1.2", "1.3")
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    set_pixels(header, RGB[..., 0].astype(np.int16))
    header.save_as(path, enforce_file_format=True)


def stack(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, counted((7, 6, 5), "uint16"), **options)


def ndpi(path: Path) -> None:
    """Hamamatsu NDPI: levels of one JPEG each, with the tags that OpenSlide asks for."""
    with tifffile.TiffWriter(path) as file:
        for level, pixels in enumerate((TISSUE, TISSUE[::2, ::2], TISSUE[::4, ::4])):
            file.write(
                iter([jpeg(pixels)]),
                shape=pixels.shape,
                dtype=np.uint8,
                photometric="ycbcr",
                subsampling=(1, 1),
                compression="jpeg",
                rowsperstrip=len(pixels),
                resolution=(20_000 / 2**level, 20_000 / 2**level),
                resolutionunit="CENTIMETER",
                metadata=None,
                extratags=[
                    (271, 2, 10, "Hamamatsu", True),
                    (65420, 4, 1, 1, True),
                    (65421, 11, 1, 20.0 / 2**level, True),
                    (65424, 9, 1, 0, True),
                ],
            )


def archive(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    members = {"a/1.png": buffer.getvalue(), "b/2.png": buffer.getvalue(), "labels.csv": b"path,label\na/1.png,x\n"}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return
    mode: Any = "w:" + path.suffix[1:].replace("tar", "")
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (6, 12, 12, 3), np.uint8), np.arange(6) % 2
    np.savez_compressed(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)


def table(path: Path) -> None:
    lines = [f"{n}.png,{'ab'[n % 2]},{n // 3},train" for n in range(12)]
    path.write_text("\n".join(["path,label,patient,split", *lines]) + "\n")


def parquet_table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": [f"{n}.png" for n in range(12)], "label": list("ab") * 6}), path)


def h5_features(path: Path) -> None:
    rng = np.random.default_rng(0)
    coords = np.stack([np.arange(20) % 5, np.arange(20) // 5], axis=1) * 256
    about = {"slide": "a.svs", "tile_px": 256, "tile_px_level0": 256.0, "mpp": 0.5}
    save_h5(path, SlideFeatures(coords, rng.normal(size=(20, 8)).astype(np.float32), about))


def packed_h5_features(path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        coords = file.create_dataset(
            "coords", data=rng.integers(0, 9, (20, 2)) * 256, compression="gzip", chunks=(8, 2)
        )
        coords.attrs["patch_size_level0"] = 256
        file.create_dataset("features", data=rng.normal(size=(1, 20, 8)), compression="gzip", shuffle=True)


def feature_table(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    names: list[str] = [str(i) for i in range(8)]
    table = FeatureTable(values, names, ["a", "b"] * 4, [None] * 8, ["train"] * 8, ["0" * 64] * 8, "m", {"spec": {}})
    save_table(path, table)


def model(path: Path) -> None:
    """A model folder of version 0.1, without digests: its reader itself has to notice damage."""
    spec = InputSpec(3, 16, 0.0, 255.0, (0.5,) * 3, (0.5,) * 3)
    save_model(path, build("vit_micro_patch8_w8", channels=3, size_px=16), spec, about={})
    (path / "digests.json").unlink()


def weights(path: Path) -> None:
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=128, depth=6, num_heads=4, num_classes=0)
    torch.save(network.state_dict(), path)


def load_slide_features(path: Path) -> None:
    load_features(path)


IMAGES = (
    Kind("a.png", pillow("PNG"), read_folder),
    Kind("sixteen-bit.png", png_16_bit, read_folder),
    Kind("a.jpg", pillow("JPEG"), read_folder),
    Kind("progressive.jpg", pillow("JPEG", progressive=True), read_folder),
    Kind("a.jp2", pillow("JPEG2000"), read_folder),
    Kind("a.gif", pillow("GIF"), read_folder),
    Kind("a.ppm", pillow("PPM"), read_folder),
    Kind("a.bmp", pillow("BMP"), read_folder),
    Kind("a.webp", pillow("WEBP", lossless=True), read_folder),
    Kind("a.tif", lambda path: tiff(path, compression="zlib", rowsperstrip=16), read_folder),
    Kind("tiles.tif", lambda path: tiff(path, tile=(16, 16), compression="jpeg"), read_folder),
    Kind("a.ome.tif", lambda path: tifffile.imwrite(path, RGB[..., 0], ome=True), read_folder),
    Kind("picture.dcm", dicom_picture, read_folder),
)
VOLUMES = (
    Kind("a.nii", lambda path: write_nifti(path, counted(), np.eye(4)), read_folder),
    Kind("a.nii.gz", lambda path: write_nifti(path, counted(), np.eye(4)), read_folder),
    Kind("two.nii", lambda path: nibabel.save(nibabel.Nifti2Image(counted(), np.eye(4)), path), read_folder),
    Kind("a.nrrd", lambda path: path.write_bytes(NRRD.encode() + counted().tobytes("F")), read_folder),
    Kind("a.mha", lambda path: path.write_bytes(META.encode() + counted().tobytes("F")), read_folder),
    Kind("a.npy", lambda path: np.save(path, counted()), read_file),
    Kind("stack.tif", stack, read_folder),
    Kind("imagej.tif", lambda path: stack(path, imagej=True), read_folder),
    Kind("frames.dcm", lambda path: write_frames(path, counted(), np.eye(4)), read_folder),
    Kind("series", lambda path: write_series(path, counted(), np.eye(4)), read_file, "series/0000.dcm"),
)
SLIDES = (
    Kind("a.svs", lambda path: write_svs(path, TISSUE, um=0.5), read_slide),
    Kind("pyramid.tif", lambda path: write_slide(path, TISSUE, level_px=((256, 256),)), read_slide),
    Kind("a.ndpi", ndpi, read_slide),
    Kind("a.scn", lambda path: write_scn(path, TISSUE, um=0.5, at=(128, 128), glass=(1024, 1024)), read_slide),
    Kind("a.bif", lambda path: write_bif(path, TISSUE, um=0.5), read_slide),
    Kind("slide.dcm", lambda path: write_dicom(path, TISSUE, um=0.5), read_slide),
    Kind("data.mrxs", lambda path: write_mrxs(path, TISSUE, um=0.5), read_slide, "data/Data0000.dat"),
    Kind("index.mrxs", lambda path: write_mrxs(path, TISSUE, um=0.5), read_slide, "index/Index.dat"),
    Kind("text.mrxs", lambda path: write_mrxs(path, TISSUE, um=0.5), read_slide, "text/Slidedat.ini"),
)
COLLECTIONS = (
    Kind("a.npz", npz, read_file),
    Kind("a.zip", archive, read_file),
    Kind("a.tar", archive, read_file),
    Kind("a.tar.gz", archive, read_file),
    Kind("a.tar.xz", archive, read_file),
)
TABLES = (
    Kind("labels.csv", table, read_table),
    Kind("labels.parquet", parquet_table, read_table),
    Kind("a.h5", h5_features, load_slide_features),
    Kind("packed.h5", packed_h5_features, load_slide_features),
    Kind("slide.parquet", features, load_slide_features),
    Kind("table.parquet", feature_table, load_table),
    Kind("model", model, load_model, "model/model.safetensors"),
    Kind("weights.pth", weights, load_model),
)
KINDS = (*IMAGES, *VOLUMES, *SLIDES, *COLLECTIONS, *TABLES)
