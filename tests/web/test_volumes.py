"""Volumes in a real browser: three planes through one voxel, the attention of its patch, and the 3D view."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from saccade.attention.explorer import Explorer, ViewRequest
from saccade.base.contracts import InputSpec
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import save_model
from saccade.viz.patch_maps import threshold_mask
from saccade.web.catalog import CatalogRun
from saccade.web.server import STATIC
from web_waiting import Held, refused, until

SIDE, GRID = 16, (4, 4, 4)
DRAWN = "document.querySelector('.words strong') && !document.querySelector('[aria-busy]')"


@pytest.fixture(scope="module")
def volumes(site, tmp_path_factory):
    """A run of volumes on the catalog: two smooth random cubes and a network of random weights."""
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        cube = np.kron(rng.integers(0, 255, (4, 4, 4)), np.ones((4, 4, 4)))
        np.save(folder / "data" / f"volume-{index}.npy", cube.astype(np.uint8))
    network = build("vit_micro_patch4_w32", channels=1, size_px=SIDE, axes=3)
    spec = InputSpec(1, SIDE, 0.0, 1.0, (0.5,), (0.25,), axes=3, intensity="range")
    save_model(folder / "model", network, spec, about={})
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"source": str(folder / "data")}}))
    run = CatalogRun(site.catalog.id_of("run", str(folder)), "cubes", folder)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)


@pytest.fixture
def coarse(site, volumes, tmp_path):
    """Another model of the same volumes on the catalog, with larger patches."""
    network = build("vit_micro_patch8_w32", channels=1, size_px=SIDE, axes=3)
    spec = InputSpec(1, SIDE, 0.0, 1.0, (0.5,), (0.25,), axes=3, intensity="range")
    save_model(tmp_path / "model", network, spec, about={})
    (tmp_path / "config.yaml").write_text((volumes.folder / "config.yaml").read_text())
    run = CatalogRun(site.catalog.id_of("run", str(tmp_path)), "coarse", tmp_path)
    site.catalog.runs.append(run)
    yield run
    site.catalog.runs.remove(run)


@pytest.fixture
def page(window, site, volumes):
    window.goto(f"{site.origin}/#/volumes")
    window.reload()
    until(window, "document.querySelector('.words strong') && !document.querySelector('[aria-busy]')")
    return window


def nifti(shape) -> bytes:
    """A volume as a file would have it, packed; one bright block in the dark."""
    voxels = np.zeros(shape, np.uint8)
    voxels[: shape[0] // 2, : shape[1] // 2, : shape[2] // 2] = 100
    return gzip.compress(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes())


def test_a_volume_is_opened_from_a_file_and_kept_in_memory(page, site, volumes):
    page.set_input_files("input[type=file]", [{"name": "head.nii.gz", "mimeType": "", "buffer": nifti((20, 20, 20))}])
    until(page, "document.querySelector('.thumbs [aria-selected=true]')?.title === 'head.nii.gz'")
    until(page, "!document.querySelector('[aria-busy]') && document.querySelector('.words strong')")
    assert not page.locator("[role=alert]:visible").all_inner_texts()
    box = page.get_by_label("Axial plane").bounding_box()
    page.get_by_label("Axial plane").click(position={"x": 0.6 * box["width"], "y": 0.3 * box["height"]})
    until(page, "document.querySelector('.words').innerText.includes('row 1, column 2 asks')")


def saved(page, kind: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.locator(f"[data-save={kind}]").click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_the_map_of_a_voxel_is_kept_as_attend_writes_it(page, site, volumes, tmp_path):
    """NIfTI: the numbers and the affine of ``saccade attend``, of the patch that asks, in the share that is kept."""
    from saccade.api import attend
    from saccade.attention.options import AttendOptions

    (tmp_path / "head.nii.gz").write_bytes(nifti((20, 24, 30)))
    page.set_input_files("input[type=file]", tmp_path / "head.nii.gz")
    until(page, "document.querySelector('.thumbs [aria-selected=true]')?.title === 'head.nii.gz'")
    until(page, "!document.querySelector('[aria-busy]') && document.querySelector('.words strong')")
    box = page.get_by_label("Axial plane").bounding_box()
    page.get_by_label("Axial plane").click(position={"x": 0.6 * box["width"], "y": 0.3 * box["height"]})
    until(page, "document.querySelector('.words').innerText.includes('plane 2, row 1, column 2 asks')")
    for head, keep in ((None, None), (0, 0.6)):
        page.get_by_label("Head", exact=True).select_option("mean" if head is None else str(head))
        if keep:
            page.get_by_label("Top attention mass").fill(f"{100 * keep:g}")
        options = AttendOptions(query="16,7,12", head="mean" if head is None else str(head), threshold=keep)
        found = attend(volumes.folder, tmp_path / "head.nii.gz", options=options)
        assert found.found.amap.query_box[:3] == (8, 4, 8)  # the patch that asks on the page: planes of 4 voxels
        wanted = nibabel.load(found.save(tmp_path / "wanted.nii.gz"))
        name, data = saved(page, "nifti")
        written = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        assert name == "head-attention.nii.gz" and written.shape == wanted.shape == (20, 24, 30)
        np.testing.assert_array_equal(written.affine, wanted.affine)
        np.testing.assert_allclose(written.get_fdata(), wanted.get_fdata(), atol=1e-5)
        assert (written.get_fdata() == 0).any() == (keep is not None)


def test_the_planes_and_the_weights_are_kept_as_they_are_shown(page, site, volumes):
    page.get_by_label("Top attention mass").fill("60")
    box = page.get_by_label("Axial plane").bounding_box()
    page.get_by_label("Axial plane").click(position={"x": 0.6 * box["width"], "y": 0.3 * box["height"]})
    until(page, "document.querySelector('.words').innerText.includes('plane 2, row 1, column 2 asks')")
    name, data = saved(page, "csv")
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    qkv = seen(site, volumes).qkv
    wanted = qkv.rows(qkv.depth - 1, 1 + (2 * 4 + 1) * 4 + 2)[:, 0, 1:].mean(axis=0)
    assert name == "volume-0-attention.csv" and len(rows) == 64
    np.testing.assert_allclose([float(row["value"]) for row in rows], wanted, rtol=1e-4)
    assert [(row["slice"], row["row"], row["column"]) for row in rows[:6]][4:] == [("0", "1", "0"), ("0", "1", "1")]
    assert [row["shown"] == "1" for row in rows] == threshold_mask(wanted[None], 0.6)[0].tolist()
    name, data = saved(page, "png")
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert name == "volume-0-attention.png" and picture.shape[1] == 3 * (384 + 16) + 16
    pixels = """() => [...document.querySelectorAll('.plane canvas')].slice(0, 3).map((canvas) =>
        [...canvas.getContext('2d').getImageData(0, 0, 384, 384).data])"""
    for number, shown in enumerate(page.evaluate(pixels)):
        left, top = 16 + number * 400, 16 + 44
        plane = np.array(shown, dtype=np.uint8).reshape(384, 384, 4)[..., :3]
        np.testing.assert_array_equal(picture[top : top + 384, left : left + 384], plane)


def test_two_models_of_a_volume_are_asked_at_one_place(page, site, coarse, volumes):
    page.reload()
    until(page, DRAWN)
    page.get_by_label("Compare with").select_option(label="coarse")
    until(page, "document.querySelectorAll('.words strong').length === 2 && !document.querySelector('[aria-busy]')")
    assert page.locator("section h2:visible").all_inner_texts()[:2] == ["A: cubes", "B: coarse"]
    canvas = page.get_by_label("Axial plane, B")
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.9 * box["width"], "y": 0.9 * box["height"]})
    says = "[...document.querySelectorAll('.words')].map((node) => node.innerText.split(' asks')[0]).join()"
    until(page, f"{says} === 'The patch in plane 2, row 3, column 3,The patch in plane 1, row 1, column 1'")
    rows = list(csv.DictReader(io.StringIO(saved(page, "csv")[1].decode())))
    assert [row["panel"] for row in rows] == ["A"] * 64 + ["B"] * 8
    page.get_by_label("Compare with").select_option(label="nothing")
    until(page, "document.querySelectorAll('.words').length === 1 && !document.querySelector('[aria-busy]')")


def test_a_refused_model_leaves_no_map_of_another(page, site, coarse, refusals):
    refusals.append("status of 400")
    page.reload()
    until(page, DRAWN)
    weights = coarse.folder / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"nothing")
    page.get_by_label("Model", exact=True).select_option(label="coarse")
    page.locator(".work section [role=alert]").wait_for()
    assert not page.locator(".planes canvas:visible, .words strong").count()
    assert "model.safetensors" in page.locator(".work section [role=alert]").inner_text()
    weights.write_bytes(kept)
    page.get_by_label("Model", exact=True).select_option(label="cubes")
    until(page, DRAWN)
    assert page.locator(".planes canvas:visible").count() == 4
    assert not page.locator("[role=alert]:visible").count()


def test_a_volume_that_claims_too_much_is_refused_before_it_is_unpacked(site, volumes):
    from saccade.errors import DamagedFile
    from saccade.web.catalog import read_upload

    header = nibabel.Nifti1Header()
    header.set_data_shape((1000, 1000, 100))
    header["vox_offset"] = 352
    header.set_data_dtype(np.uint8)
    data = gzip.compress(header.binaryblock + bytes(4))
    with pytest.raises(DamagedFile, match="claims 1,000 x 1,000 x 100 voxels"):
        read_upload(data, "large.nii.gz")
    with pytest.raises(DamagedFile, match="not a NIfTI file"):
        read_upload(b"nothing", "nothing.nii")


def seen(site, run) -> object:
    image = site.catalog.images(run, 0, 1)[1][0]
    return Explorer().view(ViewRequest(str(run.folder), "cube"), site.catalog.sample(image.id))


def test_a_voxel_asks_and_the_numbers_are_the_networks(page, site, volumes):
    canvas = page.get_by_label("Axial plane")
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.6 * box["width"], "y": 0.3 * box["height"]})  # patch: z 2 (the middle), y 1, x 2
    until(page, "document.querySelector('.words').innerText.includes('plane 2, row 1, column 2 asks')")
    found = seen(site, volumes)
    assert found.grid == GRID and found.picture.shape == (SIDE,) * 3
    row = found.qkv.rows(found.qkv.depth - 1, 1 + (2 * 4 + 1) * 4 + 2)[:, 0, 1:].mean(axis=0)
    most = np.unravel_index(int(row.argmax()), GRID)
    words = page.locator(".words").inner_text()
    assert f"plane {most[0]}, row {most[1]}, column {most[2]}" in words
    share = float(re.search(r"with ([\d.]+) %", words).group(1))
    assert share == pytest.approx(100 * row.max(), rel=0.05)  # two digits are shown


def test_numbers_that_do_not_come_are_said_and_the_controls_go_back(page, refusals):
    refusals.append("status of 500")
    before, layer = saved(page, "csv"), page.get_by_label("Layer", exact=True)
    with refused(page, "**/attention/rows?*layer=2&*"):
        layer.fill("2")
        page.locator(".work > [role=alert]").wait_for()
    assert layer.input_value() == "5" and saved(page, "csv") == before
    layer.fill("2")
    until(page, "document.querySelector('.work > [role=alert]').hidden")
    assert b"attention,2,mean" in saved(page, "csv")[1]


def test_a_file_has_the_name_of_its_volume_while_another_is_on_its_way(page):
    before, look = saved(page, "csv"), Held(page, "**/attention/view?*")
    page.locator(".thumbs button").nth(1).click()
    until(page, "document.querySelector('[aria-busy]')")
    assert saved(page, "csv") == before
    look.let_go()
    until(page, DRAWN)
    assert saved(page, "csv")[0] != before[0]


def test_what_lies_under_the_cross_follows_the_wheel(page):
    canvas = page.get_by_label("Axial plane")
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.6 * box["width"], "y": 0.3 * box["height"]})
    until(page, "document.querySelector('.words').innerText.includes('column 2 asks')")
    page.evaluate("document.querySelector('.words').textContent = ''")
    page.mouse.wheel(0, 100)
    until(page, "document.querySelector('.words').innerText.includes('Under the cross')")


def test_another_model_is_asked_at_the_same_place(page, site, coarse):
    page.reload()
    until(page, DRAWN)
    canvas = page.get_by_label("Axial plane")
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.9 * box["width"], "y": 0.9 * box["height"]})
    until(page, "document.querySelector('.words').innerText.includes('plane 2, row 3, column 3 asks')")
    page.get_by_label("Model").focus()
    page.get_by_label("Model").select_option(label="coarse")
    until(page, "document.querySelector('.words').innerText.includes('plane 1, row 1, column 1 asks')")
    assert page.evaluate("document.activeElement.labels?.[0].textContent") == "Model"  # the keyboard keeps its place


def test_planes_are_linked_and_move_by_keys(page):
    captions = "[...document.querySelectorAll('.plane figcaption')].map(node => node.innerText).slice(0, 3)"
    assert page.evaluate(captions) == ["Axial 8 of 0 to 15", "Coronal 8 of 0 to 15", "Sagittal 8 of 0 to 15"]
    page.get_by_label("Axial plane").focus()
    page.keyboard.press("ArrowRight")
    until(page, f"({captions})[2] === 'Sagittal 12 of 0 to 15'")
    page.keyboard.press("PageUp")
    until(page, f"({captions})[0] === 'Axial 12 of 0 to 15'")
    page.get_by_label("Coronal plane").hover()
    page.mouse.wheel(0, 100)
    until(page, f"({captions})[1] === 'Coronal 9 of 0 to 15'")


def test_the_head_is_on_top_of_the_upright_planes(page, site, volumes):
    """The top left pixel of the coronal plane is the highest z and the lowest x."""
    page.get_by_label("Top attention mass").fill("5")
    picture = seen(site, volumes).picture
    shown = page.evaluate(
        """() => [[2, 2], [2, 380], [380, 2]].map(([x, y]) =>
        [...document.querySelectorAll('.plane canvas')][1].getContext('2d').getImageData(x, y, 1, 1).data[0])"""
    )
    wanted = [picture[-1, 8, 0], picture[0, 8, 0], picture[-1, 8, -1]]
    assert np.abs(np.array(shown) - np.array(wanted, dtype=int)).max() <= 90  # a kept patch may lie over one of them
    assert sum(abs(int(a) - int(b)) <= 3 for a, b in zip(shown, wanted)) >= 2


def test_a_model_can_be_chosen_before_there_is_a_volume(window, site, volumes, coarse, monkeypatch):
    monkeypatch.setattr(type(site.catalog), "images", lambda catalog, run, start, count: (0, []))
    window.goto(f"{site.origin}/#/volumes")
    window.wait_for_selector(".page-volumes[data-ready]")
    window.get_by_label("Model", exact=True).select_option(label="coarse")
    assert not window.locator("[aria-busy], .page [role=status]").count()
    monkeypatch.undo()
    window.set_input_files("input[type=file]", [{"name": "head.nii.gz", "mimeType": "", "buffer": nifti((20, 20, 20))}])
    until(window, DRAWN)
    asked = window.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    assert f"model={site.catalog.model_id(str(coarse.folder))}" in [one for one in asked if "/view?" in one][-1]


def test_the_3d_view_is_drawn_under_our_policy(page):
    """NiiVue runs without eval, inline scripts or connections; the window's fixture fails on a refusal."""
    if not page.evaluate("Boolean(document.createElement('canvas').getContext('webgl2'))"):
        pytest.skip("this Chromium has no WebGL 2")
    page.wait_for_selector("[data-drawn]")


def test_the_3d_view_is_let_go_of(page, coarse):
    """NiiVue listens to the window and holds its volume until it is told to stop."""
    page.add_init_script("""
      window.listening = 0;
      const [add, remove] = [window.addEventListener.bind(window), window.removeEventListener.bind(window)];
      window.addEventListener = (kind, ...more) => { window.listening += kind === "resize"; add(kind, ...more); };
      window.removeEventListener = (kind, ...more) => { window.listening -= kind === "resize"; remove(kind, ...more); };
    """)
    page.reload()
    drawn = "document.querySelector('.solid canvas')?.dataset.drawn === 'yes'"
    until(page, drawn)
    assert page.evaluate("window.listening") == 1
    for label in ("coarse", "cubes", "coarse"):
        page.evaluate("document.querySelector('.solid canvas').dataset.drawn = 'before'")
        page.get_by_label("Model", exact=True).select_option(label=label)
        until(page, drawn)
    assert page.evaluate("window.listening") == 1
    page.locator("#pages a[data-page=runs]").click()
    page.wait_for_selector(".page-runs[data-ready]")
    assert page.evaluate("window.listening") == 0


def test_what_is_vendored_is_what_its_table_says():
    table = (STATIC / "vendor" / "VENDORED.md").read_text()
    files = sorted((STATIC / "vendor").rglob("*.js"))
    assert files
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in table, path.name
        assert (path.parent / "LICENSE").is_file()
