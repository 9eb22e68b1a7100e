"""Masks, overlaps and upsampling of maps; pictures drawn from them."""

from __future__ import annotations

import dataclasses
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fake_run import fake_map, tissue
from saccade.attention.image import ImageAttention
from saccade.attention.options import AttendOptions
from saccade.errors import UsageError
from saccade.viz.overlays import (
    CELL_PX,
    GAP_PX,
    LINE_PX,
    Neighbour,
    attention_panel,
    colours,
    neighbours_panel,
    overlay_png,
    overlay_svg,
    to_rgb,
)
from saccade.viz.patch_maps import AttentionMap, colour_scales, jaccard, threshold_mask, upsample


def test_threshold_keeps_the_smallest_set():
    values = np.array([[0.5, 0.1], [0.3, 0.1]])
    assert threshold_mask(values, 0.5).tolist() == [[True, False], [False, False]]
    assert threshold_mask(values, 0.6).tolist() == [[True, False], [True, False]]
    assert threshold_mask(values, 1.0).all()


@given(arrays(np.float64, (4, 5), elements=st.floats(0, 1)), st.floats(0.01, 1))
@example(np.full((4, 5), 5e-324), 0.015625)
def test_threshold_holds_the_mass_and_not_one_patch_more(values, keep):
    mask = threshold_mask(values, keep)
    if not values.any():
        assert not mask.any()
        return
    values = values / values.max()  # of the smallest numbers there are no share can be told from 0
    total = values.sum()
    assert values[mask].sum() >= keep * total * (1 - 1e-6)
    assert values[mask].sum() - values[mask].min() < keep * total * (1 + 1e-6)


def test_negative_and_missing_values_carry_no_mass():
    mask = threshold_mask(np.array([[-1.0, np.nan], [0.2, 0.8]]), 1.0)
    assert mask.tolist() == [[False, False], [True, True]]
    assert not threshold_mask(np.full((2, 2), -1.0)).any()


@pytest.mark.parametrize("keep", [0, -0.1, 1.1])
def test_threshold_refuses_other_shares(keep):
    with pytest.raises(UsageError, match="threshold out of range"):
        threshold_mask(np.ones((2, 2)), keep)


def test_jaccard():
    a = np.array([[1, 1], [0, 0]], dtype=bool)
    b = np.array([[1, 0], [1, 0]], dtype=bool)
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a, a) == 1.0
    assert jaccard(a, ~a) == 0.0
    assert jaccard(a & ~a, b & ~b) == 1.0
    with pytest.raises(UsageError, match="differ in shape"):
        jaccard(a, a[:1])


def test_upsample_agrees_with_torch():
    values = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=(24, 40), mode="bilinear")
    assert upsample(values, (24, 40)) == pytest.approx(expected[0, 0].numpy(), abs=1e-5)


def test_upsampled_masks_stay_masks():
    mask = np.array([[True, False], [False, True]])
    large = upsample(mask, (4, 6))
    assert large.dtype == bool
    assert (large == np.kron(mask, np.ones((2, 3), dtype=bool))).all()


def test_colours_grow_lighter():
    ramp = colours(np.linspace(0, 1, 64)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(ramp) > 0).all()
    assert (colours(np.array([np.nan, -3.0])) == colours(np.array([0.0]))).all()


def test_to_rgb_guesses_nothing():
    assert to_rgb(np.zeros((1, 4, 5), dtype=np.uint8)).shape == (4, 5, 3)
    for wrong in (np.zeros((3, 4, 5), dtype=np.float32), np.zeros((4, 5, 3), dtype=np.uint8)):
        with pytest.raises(UsageError, match="uint8"):
            to_rgb(wrong)


def test_overlay_marks_the_query_and_keeps_the_aspect(tmp_path):
    image = np.full((3, 48, 96), 128, dtype=np.uint8)
    plain, asked = (
        np.asarray(Image.open(io.BytesIO(overlay_png(image, fake_map(0, query=q), longest_px=192))))
        for q in (False, True)
    )
    assert plain.shape == asked.shape == (96, 192, 3)
    # The box (40, 48, 8, 8) of a 96 px input lies at rows 20..24, columns 48..56 of this picture.
    changed = np.argwhere((plain != asked).any(axis=-1))
    assert changed.min(axis=0).tolist() == [38, 94] and changed.max(axis=0).tolist() == [49, 113]
    written = overlay_png(image, fake_map(0), tmp_path / "o.png", longest_px=64)
    assert (tmp_path / "o.png").read_bytes() == written


def test_panel_has_one_cell_a_head_plus_two():
    for heads, cells in ((1, 2), (3, 5), (6, 8)):
        panel = Image.open(io.BytesIO(attention_panel(tissue(0), fake_map(0, heads))))
        columns = cells if cells <= 5 else 4
        assert panel.width == columns * (CELL_PX + GAP_PX) - GAP_PX
        assert panel.mode == "RGBA" and panel.getpixel((CELL_PX + 2, 5))[3] == 0


def test_the_mean_that_is_drawn_is_the_thresholded_mean():
    def chosen(head: str):
        return ImageAttention(tissue(2), fake_map(2), AttendOptions(head=head, threshold=0.3), "fake", {}).selected()

    every, mean = chosen("all"), chosen("mean")
    kept = threshold_mask(fake_map(2).mean, 0.3)
    drawn = ET.fromstring(overlay_svg(tissue(2), every)).findall(".//{*}g/{*}rect")
    assert [float(rect.get("fill-opacity")) > 0.35 for rect in drawn] == kept.ravel().tolist()
    assert overlay_png(tissue(2), every) == overlay_png(tissue(2), mean)
    panels = [
        Image.open(io.BytesIO(attention_panel(tissue(2), one, colour_scales([every])[0]))) for one in (every, mean)
    ]
    second = (CELL_PX + GAP_PX, 0, 2 * CELL_PX + GAP_PX, CELL_PX)  # the cell beside the image
    assert panels[0].crop(second).tobytes() == panels[1].crop(second).tobytes()


def near_uniform(most: float) -> AttentionMap:
    """One head over 4 x 4 patches around the even share, the largest ``most`` times as much."""
    values = np.full((1, 4, 4), 1 / 16, dtype=np.float32)
    values[0, 0, 0] = most / 16
    return AttentionMap(values, values[0], (4, 4), (32, 32), None, "attention", np.zeros(1, dtype=np.float32))


def test_an_almost_uniform_map_looks_uniform_and_says_so():
    uniform, decided = near_uniform(1.1), near_uniform(6.0)
    [scale] = colour_scales([uniform])
    assert (scale.low, scale.high) == (0, 2 / 16) and np.ptp(scale.strength(uniform.mean)) < 0.06
    assert uniform.largest(uniform.mean) == "1.1 x even: almost uniform"
    assert decided.largest(decided.mean) == "up to 37.5 %, 6.0 x even"
    [stretched] = colour_scales([uniform], stretch=True)
    assert np.ptp(stretched.strength(uniform.mean)) == 1


def test_maps_side_by_side_share_one_scale_in_multiples_of_the_even_share():
    wide = dataclasses.replace(near_uniform(3.0), n_keys=32)  # sees 32 keys: the same weights are twice the multiple
    scales = colour_scales([near_uniform(1.1), wide])
    assert [scale.high / scale.even for scale in scales] == pytest.approx([6, 6])
    assert scales[0].label(scales[0].high) == scales[1].label(scales[1].high) == "6 x"
    cosine = dataclasses.replace(near_uniform(8.0), kind="similarity")
    assert (colour_scales([cosine])[0].low, colour_scales([cosine])[0].high) == (0, 1)


def test_a_panel_has_a_colour_bar_with_a_tick_at_the_even_share():
    amap = near_uniform(4.0)
    panel = np.asarray(Image.open(io.BytesIO(attention_panel(tissue(0), amap))))
    top = panel.shape[0] - LINE_PX - GAP_PX - 12 + GAP_PX // 2
    wide = min(2 * CELL_PX, panel.shape[1])
    bar = panel[top + 5, :wide, :3].astype(int)
    assert np.abs(bar[0] - colours(np.array(0.0))).max() == 0 and np.abs(bar[-1] - colours(np.array(1.0))).max() == 0
    jumps = np.flatnonzero(np.abs(np.diff(bar, axis=0)).max(axis=1) > 40)
    assert abs(jumps.mean() - wide / 4) < 3  # 1 of 4


def test_flat_maps_are_drawn():
    amap = fake_map(0, 2)
    amap.values[:] = 0.1
    assert attention_panel(tissue(0), amap).startswith(b"\x89PNG")


def test_neighbours_panel_tells_classes_apart_without_colour():
    image = np.full((3, 20, 30), 200, dtype=np.uint8)
    query = Neighbour(image, "a")

    def ink(label: str | None) -> int:
        panel = Image.open(io.BytesIO(neighbours_panel([(query, [Neighbour(image, label, 0.5)])])))
        strip = np.asarray(panel)[115:118, -112:, 3]
        return int((strip == 255).sum())

    assert ink("a") == 3 * 112 and ink("b") == 0 and ink(None) == 0
    with pytest.raises(UsageError, match="at least one"):
        neighbours_panel([])


def test_overlay_svg_is_vector_and_says_what_it_shows():
    svg = overlay_svg(tissue(0), fake_map(0, query=True), title="a <b> & c")
    root = ET.fromstring(svg)
    ns = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{ns}title").text == "a <b> & c"
    assert "query: marked patch" in root.find(f"{ns}desc").text
    assert len(root.findall(f"{ns}g/{ns}rect")) == 144
    assert len(root.findall(f"{ns}rect")) == 2
    assert root.find(f"{ns}image").get("href").startswith("data:image/png;base64,")
