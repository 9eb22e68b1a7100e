"""Small volumes in the files that scanners and programs write, for the tests."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHAPE = (5, 6, 7)  # x, y, z: different, so that exchanged axes are seen


def counted(shape: Sequence[int] = SHAPE, kind: str = "int16") -> np.ndarray:
    """Every voxel has a number of its own."""
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


def oblique(seed: int = 0, spacing: Sequence[float] = (0.7, 1.1, 2.5)) -> np.ndarray:
    """An affine with random angles: far from any axis, and not always right-handed."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = rng.normal(0, 50, 3)
    return affine


def turned(spacing: Sequence[float] = (0.7, 1.1, 2.5)) -> list[np.ndarray]:
    """The 48 affines that only exchange and flip axes."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis, (to, sign) in enumerate(zip(order, signs)):
                affine[to, axis] = sign * spacing[axis]
            affine[:3, 3] = (10, -20, 30)
            found.append(affine)
    return found


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, **header: object) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def write_series(folder: Path, values: np.ndarray, affine: np.ndarray, **tags: object) -> Path:
    """A DICOM series of the slices ``values`` [X Y Z] int16, in files whose names say nothing of their order.

    affine  from (x, y, z) to millimetres in RAS; tags  set in every slice
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sides = np.linalg.norm(lps[:3, :3], axis=0)
    series, study = generate_uid(), generate_uid()
    order = np.random.default_rng(1).permutation(values.shape[2])
    for z in range(values.shape[2]):
        data = slice_header(series, study)
        data.ImagePositionPatient = [float(v) for v in lps[:3, 3] + z * lps[:3, 2]]
        data.ImageOrientationPatient = [float(v) for v in np.r_[lps[:3, 0] / sides[0], lps[:3, 1] / sides[1]]]
        data.PixelSpacing = [float(sides[1]), float(sides[0])]
        data.SliceThickness = 9.0  # wrong on purpose: the distance is in the positions
        data.InstanceNumber = int(order[z]) + 1
        set_pixels(data, values[:, :, z].T)
        for key, value in tags.items():
            setattr(data, key, value)
        data.save_as(folder / f"{order[z]:04d}.dcm", enforce_file_format=True)
    return folder


def slice_header(series: str, study: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID = series, study
    data.Modality, data.PatientName, data.PatientID = "MR", "Secret^Name", "id-4711"
    data.PatientBirthDate, data.SeriesNumber = "19700101", 3
    return data


def set_pixels(data: Dataset, plane: np.ndarray) -> None:
    """``plane`` [rows columns] int16 or uint16."""
    data.Rows, data.Columns = plane.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(plane.dtype == np.int16)
    data.PixelData = np.ascontiguousarray(plane).tobytes()


def change(folder: Path, name: str, **tags: object) -> None:
    """Set tags of one slice; None removes one."""
    data = pydicom.dcmread(folder / name)
    for key, value in tags.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)
    data.save_as(folder / name)


def write_frames(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """The same volume as one multi-frame file, its frames out of order, half of the geometry shared by all."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sides = np.linalg.norm(lps[:3, :3], axis=0)
    data = slice_header(generate_uid(), generate_uid())
    shared, measures, angles, numbers = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [float(sides[1]), float(sides[0])], 9.0
    angles.ImageOrientationPatient = [float(v) for v in np.r_[lps[:3, 0] / sides[0], lps[:3, 1] / sides[1]]]
    numbers.RescaleSlope, numbers.RescaleIntercept = 2, -100
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [angles]
    shared.PixelValueTransformationSequence = [numbers]
    data.SharedFunctionalGroupsSequence, frames = [shared], []
    order = np.random.default_rng(2).permutation(values.shape[2])
    for z in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [float(v) for v in lps[:3, 3] + z * lps[:3, 2]]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    set_pixels(data, values[:, :, order].transpose(2, 1, 0).reshape(-1, values.shape[0]))
    data.Rows, data.NumberOfFrames = values.shape[1], len(order)
    data.save_as(path, enforce_file_format=True)
    return path
