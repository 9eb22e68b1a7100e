"""Maps: principal components, clusters, and t-SNE in a process of its own."""

import time

import numpy as np
import pytest
from sklearn.decomposition import PCA

from saccade.errors import MissingDependency, UsageError
from saccade.features import projection
from saccade.features.table import l2_normalize


def blobs(rows, clusters=4, width=12, seed=0):
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % clusters
    return (3 * np.eye(clusters, width)[label] + 0.3 * rng.standard_normal((rows, width))).astype(np.float32), label


def test_pca_is_scikit_learns_up_to_sign():
    x, _ = blobs(300)
    scores, shares = projection.pca(x, 3)
    peer = PCA(3, svd_solver="full").fit(l2_normalize(x).astype(np.float64))
    expected = peer.transform(l2_normalize(x).astype(np.float64))
    sign = np.sign((scores * expected).sum(axis=0))
    np.testing.assert_allclose(scores, expected * sign, atol=1e-5)
    np.testing.assert_allclose(shares, peer.explained_variance_ratio_, atol=1e-6)


def test_pca_does_not_flip():
    """The same map whatever the order of the rows, and for fewer rows than components."""
    x, _ = blobs(200)
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(projection.pca(x)[0][order], projection.pca(x[order])[0], atol=1e-5)
    few, shares = projection.pca(x[:1], 2)
    assert few.shape == (1, 2) and not few.any() and not shares.any()
    assert projection.pca(x[:, :1], 2)[0].shape == (200, 2)


def test_clusters_are_found_and_numbered_by_size():
    x, label = blobs(400)
    x = np.concatenate([x, x[label == 2] + 0.01])
    found = projection.clusters(x, 4)
    assert [len(set(found[:400][label == c].tolist())) for c in range(4)] == [1] * 4
    assert (np.diff(np.bincount(found)) <= 0).all() and found[2] == 0
    assert np.array_equal(found, projection.clusters(x, 4))
    with pytest.raises(UsageError, match="number of clusters"):
        projection.clusters(x, 1)


def test_tsne_ends_in_the_background_and_keeps_clusters(monkeypatch):
    pytest.importorskip("openTSNE", reason='this test needs pip install "saccade[map]"')
    x, label = blobs(120)
    job = projection.begin("tsne", x)
    assert job.state().state == "running"
    seen = set()
    end = time.monotonic() + 200
    while job.state().state == "running" and time.monotonic() < end:
        seen.add(job.state().text)
        time.sleep(0.02)
    assert job.state().state == "done", job.state()
    assert any("step" in text for text in seen)
    places = job.result
    middle = np.stack([places[label == c].mean(axis=0) for c in range(4)])
    nearest = np.linalg.norm(places[:, None] - middle, axis=2).argmin(axis=1)
    assert (nearest == label).mean() == 1


def test_a_job_can_be_cancelled():
    pytest.importorskip("openTSNE", reason='this test needs pip install "saccade[map]"')
    job = projection.begin("tsne", blobs(2000)[0])
    job.cancel()
    assert job.wait(20).state == "cancelled"
    job._process.join(20)
    assert not job._process.is_alive() and job.result is None
    assert job.state().state == "cancelled"  # the process's end says nothing else


@pytest.mark.slow
def test_umap_ends_in_the_background():
    """Its first start compiles for half a minute."""
    pytest.importorskip("umap", reason='this test needs pip install "saccade[umap]"')
    job = projection.begin("umap", blobs(120)[0])
    assert job.wait(280).state == "done" and np.isfinite(job.result).all()


def test_what_cannot_be_made_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openTSNE", None)
    with pytest.raises(MissingDependency, match=r'pip install "saccade\[map\]"'):
        projection.begin("tsne", blobs(20)[0])
    assert "pip install" in projection.missing("tsne")
    with pytest.raises(UsageError, match="unknown kind of map"):
        projection.missing("isomap")
