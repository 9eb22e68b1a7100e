"""What is written anew while the page is open is read again: weights of a model, feature tables and their pictures."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from saccade.features.stores import write, written
from saccade.features.table import FeatureTable, save_table
from saccade.web import discover
from saccade.web.catalog import CatalogRun, build_catalog
from saccade.web.embedding_map import OpenTables
from web_requests import ask, fetch


@pytest.fixture
def trained_on(site):
    """A copy of the short run on the catalog, whose weights may be changed."""
    folder = site.run.with_name("trained on")
    shutil.copytree(site.run, folder)
    run = CatalogRun(site.catalog.id_of("run", str(folder)), "trained on", folder)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)
    shutil.rmtree(folder)


def test_a_model_that_was_trained_on_answers_with_its_new_weights(site, trained_on):
    from safetensors.numpy import load_file, save_file

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    image = site.catalog.uploads.add("noise.png", file.getvalue())

    def rows() -> np.ndarray:
        model = site.catalog.model_id(str(trained_on.folder))
        found = fetch(site, f"/api/attention/rows?model={model}&image={image}&layer=0&first=0")
        assert found.status == 200, found.body
        return np.frombuffer(found.body, "<f4")

    before = rows()
    weights = trained_on.folder / "model" / discover.WEIGHTS
    new = {
        name: value * 3 if value.dtype == np.float32 and value.ndim > 1 else value
        for name, value in load_file(weights).items()
    }
    save_file(new, weights, metadata={"format": "pt"})
    (weights.parent / "digests.json").unlink()  # as after a change on purpose
    after = rows()
    assert not np.allclose(before, after)
    np.testing.assert_array_equal(rows(), after)


def test_the_stamp_is_of_the_file_that_is_loaded(site, tmp_path):
    weights = site.run / "model" / discover.WEIGHTS
    assert discover.written(str(site.run)) == discover.written(str(site.run / "model")) == discover.stamp(weights)
    shutil.copy(weights, tmp_path / "own.safetensors")
    own = discover.stamp(tmp_path / "own.safetensors")
    assert discover.written(f"{tmp_path / 'own.safetensors'}@vit_micro_patch8_w32") == own is not None
    assert discover.written("random:vit_micro_patch8") is None and discover.written("timm:a/b@c") is None


def small_table(seed: int) -> FeatureTable:
    features, nothing = np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float32), [None] * 8
    return FeatureTable(features, [f"{seed}-{i}" for i in range(8)], *[nothing] * 4, "m", {})  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["features.parquet", "features.lance"])
def test_a_table_that_is_written_again_is_read_again(tmp_path, name):
    if name.endswith("lance"):
        pytest.importorskip("lancedb", reason='tables in LanceDB need pip install "saccade[search]"')
    place = tmp_path / name
    assert written(place) == ""
    write(place, small_table(1))
    shelf = OpenTables(build_catalog([], [], [str(place)]))
    key = shelf.listed()[0]["id"]
    first = shelf.open(key)
    assert shelf.open(key) is first and first.about()["written"] == written(place) != ""
    write(place, small_table(2))
    second = shelf.open(key)
    assert second.row(0)["id"] == "2-0" and second.about()["written"] not in ("", first.written)
    assert shelf.open(key) is second


def test_pictures_of_a_table_that_was_written_again_have_another_address(window, site, tmp_path):
    table = site.second / "features.parquet"
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")

    def lay(order: list[int]) -> set[str]:
        ids, nothing = [f"{i}.png" for i in order], [None] * 12
        features = np.random.default_rng(3).standard_normal((12, 4)).astype(np.float32)
        about = {"data": str(tmp_path / "images")}
        save_table(table, FeatureTable(features, ids, *[nothing] * 4, "m", about))  # type: ignore[call-arg]
        window.goto("about:blank")
        window.goto(f"{site.origin}/#/map?table={site.catalog.id_of('table', str(table))}")
        window.wait_for_selector(".page-map[data-ready] .legend li")
        window.get_by_role("button", name="Select visible").click()
        window.wait_for_selector(".chosen img")
        return set(window.locator(".chosen img").evaluate_all("images => images.map(one => one.src)"))

    try:
        before, after = lay(list(range(12))), lay(list(range(11, -1, -1)))
    finally:
        window.goto("about:blank")  # pictures that are on their way would be missed
        table.unlink()
    assert before and after and not before & after


def test_the_picture_of_a_look_is_asked_for_again(site):
    run = site.catalog.runs[0]
    image = json.loads(ask(site, f"/api/images?run={run.id}")[1])["images"][0]["id"]
    model = site.catalog.model_id(str(run.folder))
    found = fetch(site, f"/api/attention/picture?model={model}&image={image}")
    assert found.status == 200 and found.headers["cache-control"] == "no-store"
