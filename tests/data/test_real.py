"""The real images: counts that were published with them, and what is known to be wrong with them."""

import gzip
import zipfile
from collections import Counter

import nibabel
import numpy as np
import pytest

from saccade.data.audit.images import audit
from saccade.data.open import open_source
from saccade.data.splits import grouped_split
from saccade.errors import DataError

pytestmark = pytest.mark.data


def test_lc25000(shared_data):
    source = open_source(shared_data / "histology" / "lc25000-lung-224.zip", group="source_tile")
    assert len(source) == 3522
    found = audit(source, limit=200)
    assert found.groups == 441 and found.splits == {"train": 2651, "test": 871}
    assert found.labels == {"lung_n": 1178, "lung_aca": 1160, "lung_scc": 1184}
    assert found.smallest_px == found.largest_px == (224, 224) and found.channels == {3: 200}
    assert found.leaks == [] and found.damaged == []
    train, test = grouped_split(source.records, 0.25, 0)
    assert abs(len(test) / len(source) - 0.25) < 0.01
    assert not {source.records[i].group for i in train} & {source.records[i].group for i in test}


def test_monuseg_takes_the_images_and_not_the_masks(shared_data):
    source = open_source(shared_data / "histology" / "monuseg-1000px", label="organ", group="tcga_case")
    found = audit(source)
    assert found.images == 11 and found.unlisted == 11 and found.smallest_px == (1000, 1000)
    assert all(record.id.startswith("images/") for record in source.records)
    assert found.labels["breast"] == 2 and found.labels["stomach"] == 1 and found.groups == 11


def test_melanoma_tiff(shared_data):
    assert open_source(shared_data / "histology" / "melanoma").read(0).pixels.shape == (3, 1024, 1024)


def test_bccd_has_boxes_and_no_manifest(shared_data):
    found = audit(open_source(shared_data / "cells" / "bccd-blood-smears.zip"))
    assert (found.images, found.labels, found.unlisted) == (364, {}, 0)
    assert found.smallest_px == found.largest_px == (480, 640)


def test_pneumoniamnist_leaks_between_its_parts(shared_data):
    found = audit(open_source(shared_data / "xray" / "pneumoniamnist-28-balanced.npz"))
    assert found.splits == {"train": 2428, "val": 270, "test": 468} and found.labels == {"0": 1583, "1": 1583}
    assert found.channels == {1: 3166} and found.smallest_px == (28, 28)
    assert sum(len(ids) - 1 for ids in found.duplicates) == 8
    assert found.leaks[0].startswith("identical images in more than one split: 3")


def test_adrenal_volumes(shared_data):
    source = open_source(shared_data / "volumes" / "adrenalmnist3d_64.npz")
    assert Counter(r.split for r in source.records) == {"train": 1188, "val": 98, "test": 298}
    assert source.read(0).pixels.shape == (1, 64, 64, 64)


def test_slides_without_resolution_are_named(shared_data):
    with pytest.raises(DataError, match=r"resolution unknown: C3L-00601-26-pyramid\.tif"):
        open_source(shared_data / "slides")


def test_hippocampus_has_masks_and_millimetres(shared_data):
    source = open_source(shared_data / "volumes" / "msd-hippocampus-130.zip")
    assert source.axes == 3 and len(source) == 130
    sample = source.read(0)
    assert sample.pixels.shape[1:] == sample.mask.shape and set(np.unique(sample.mask)) == {0, 1, 2}
    assert sample.spacing_mm == (1, 1, 1)


def test_hippocampus_lies_as_nibabel_says(shared_data):
    path = shared_data / "volumes" / "msd-hippocampus-130.zip"
    source = open_source(path)
    with zipfile.ZipFile(path) as archive:
        for index in range(0, len(source), 13):
            image = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(source.records[index].id)))
            there, sample = nibabel.as_closest_canonical(image), source.read(index)
            ours = sample.pixels[0].transpose(2, 1, 0)[::-1, ::-1]
            np.testing.assert_allclose(ours, np.asarray(there.dataobj), rtol=1e-5)
            corner = [sample.pixels.shape[3] - 1, sample.pixels.shape[2] - 1, 0, 1]
            np.testing.assert_allclose(sample.affine @ corner, there.affine[:, 3], atol=1e-5)


def test_dicom_series_as_simpleitk_reads_it(shared_data, tmp_path):
    SimpleITK = pytest.importorskip("SimpleITK")
    path = shared_data / "volumes" / "dicom-brain-PGBM-002.zip"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    sample = open_source(path).read(0)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "PGBM-002-T1post")))
    image = SimpleITK.DICOMOrient(reader.Execute(), "LPS")
    np.testing.assert_array_equal(sample.pixels[0], SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(sample.spacing_mm, image.GetSpacing()[::-1], rtol=1e-5)
    np.testing.assert_allclose(sample.affine[:3, 3], np.array(image.GetOrigin()) * (-1, -1, 1), atol=1e-4)
    assert sample.modality == "MR" and sample.pixels.shape == (1, 22, 512, 512)


def test_cifar(shared_data):
    source = open_source(shared_data / "natural" / "cifar10-jpeg.tar.xz")
    assert Counter(r.split for r in source.records) == {"train": 50000, "test": 10000}
    counts = Counter((r.split, r.label) for r in source.records)
    assert len(counts) == 20 and set(counts.values()) == {5000, 1000}
    assert audit(source, limit=500).damaged == []


@pytest.mark.slow
def test_every_cifar_image_can_be_read(shared_data):
    found = audit(open_source(shared_data / "natural" / "cifar10-jpeg.tar.xz"))
    assert found.readable == 60000 and found.smallest_px == found.largest_px == (32, 32)
