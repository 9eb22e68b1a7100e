"""The losses of the pretext methods on fixed tensors, against formulas written a second time, and what they see."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.augment.masks import context_and_targets, first_of, hidden_blocks, random_parts
from saccade.base.contracts import Hidden, View
from saccade.methods.lejepa import agreement, sigreg
from saccade.methods.mae import mae_loss, patchify
from saccade.methods.moco_v3 import info_nce
from saccade.methods.relative_position import NEIGHBOURS, RelativePosition, RelativePositionConfig, one_channel
from saccade.methods.same_image import pair_features, same_image_loss
from saccade.models.backbones.build import build


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- masks --------------------------------------------------------------------------------------

GRIDS = st.tuples(st.integers(2, 16), st.integers(2, 16))


@given(
    grid=GRIDS, share=st.floats(0.01, 0.99), seed=st.integers(0, 9), items=st.lists(st.integers(0, 10**9), min_size=1)
)
@settings(max_examples=60, deadline=None)
def test_parts_are_a_partition_that_depends_on_the_image_alone(grid, share, seed, items):
    visible, hidden = random_parts(grid, share, seed=seed, step=3, items=torch.tensor(items))
    both = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(math.prod(grid)).expand(len(items), -1))
    assert visible.shape[1] >= 1 and hidden.shape[1] >= 1
    alone, _ = random_parts(grid, share, seed=seed, step=3, items=torch.tensor(items[-1:]))
    assert torch.equal(alone[0], visible[-1])


@given(grid=GRIDS, step=st.integers(0, 500), targets=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_context_never_sees_a_target_and_is_never_empty(grid, step, targets):
    """Whatever the grid: where all would be covered, only the first target stays hidden."""
    items = torch.arange(5)
    context, blocks = context_and_targets(grid, seed=0, step=step, items=items, targets=targets)
    assert blocks.shape[:2] == (5, targets) and context.any(dim=1).all()
    for allowed, own in zip(context, blocks):
        assert not allowed[own[0]].any()
        everywhere = torch.zeros(math.prod(grid), dtype=torch.bool)
        everywhere[own.flatten()] = True
        assert not allowed[own.flatten()].any() or everywhere.all()
    count = int(context.sum(dim=1).min())
    chosen = first_of(context, count, seed=0, step=step, items=items)
    assert context.gather(1, chosen).all() and all(len(set(row.tolist())) == count for row in chosen)


@given(grid=GRIDS, low=st.floats(0.05, 0.5))
@settings(max_examples=40, deadline=None)
def test_hidden_blocks_keep_to_their_share(grid, low):
    found = hidden_blocks(
        grid, seed=0, step=0, items=torch.arange(64), stream="a", prob=0.5, mask_ratio=(low, low + 0.2)
    )
    shares = found.float().mean(dim=1)
    assert float(shares.max()) <= low + 0.2 + 1e-6
    # About half of the images have nothing hidden (or a share of less than one patch).
    assert float((shares == 0).float().mean()) > 0.25


# --- what the network sees ----------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "sincos", "rotary"])
def test_hidden_patches_are_not_seen(positions):
    net = build("vit_micro_patch8_w32", size_px=32, options={"positions": positions, "registers": 2}).eval()
    x = drawn(3, 3, 32, 32)
    keep = torch.tensor([[0, 3, 5], [1, 2, 15], [4, 8, 9]])
    where = torch.ones(3, 16, dtype=torch.bool).scatter(1, keep, False)
    other = torch.where(
        where.view(3, 1, 4, 1, 4, 1).expand(3, 3, 4, 8, 4, 8).reshape(3, 3, 32, 32), drawn(3, 3, 32, 32, seed=1), x
    )
    token = drawn(32, seed=2)
    with torch.no_grad():
        assert not torch.equal(net(x).cls, net(other).cls)
        assert torch.equal(net(x, keep=keep).tokens, net(other, keep=keep).tokens)
        one, same = (net(pixels, hidden=Hidden(where, token)) for pixels in (x, other))
        assert torch.equal(one.tokens, same.tokens)
        everything = torch.arange(16).expand(3, -1)
        torch.testing.assert_close(net(x, keep=everything).tokens, net(x).tokens)
        # Places are kept: the same patches in another order are the same tokens in that order.
        turned = net(x, keep=keep.flip(1))
        torch.testing.assert_close(turned.tokens.flip(1), net(x, keep=keep).tokens)


def test_the_mean_of_the_patches_can_be_the_image():
    net = build("vit_micro_patch8_w32", size_px=32, options={"pool": "mean"}).eval()
    with torch.no_grad():
        found = net(drawn(2, 3, 32, 32))
    torch.testing.assert_close(found.cls, found.tokens.mean(dim=1))


# --- losses -------------------------------------------------------------------------------------


def test_mae_loss_is_that_of_mae():
    pixels = drawn(2, 3, 16, 24)
    wanted = patchify(pixels, 8)
    assert wanted.shape == (2, 6, 192)
    # Patch 4 is the second row, second column; its first three numbers are the channels of its first pixel.
    assert torch.equal(wanted[1, 4, :3], pixels[1, :, 8, 8]) and torch.equal(wanted[1, 4, 3:6], pixels[1, :, 8, 9])
    guess = drawn(2, 6, 192, seed=1)
    target = wanted.double().numpy()
    target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
    expected = ((guess.double().numpy() - target) ** 2).mean(-1).mean()
    assert float(mae_loss(guess, wanted, normalise=True)) == pytest.approx(expected, rel=1e-5)
    assert float(mae_loss(wanted, wanted, normalise=False)) == 0


def test_info_nce_by_hand():
    queries, keys = drawn(4, 6), drawn(9, 6, seed=1)
    q = queries.double().numpy() / np.linalg.norm(queries.double().numpy(), axis=1, keepdims=True)
    k = keys.double().numpy() / np.linalg.norm(keys.double().numpy(), axis=1, keepdims=True)
    scores = np.exp(q @ k.T / 0.2)
    expected = -2 * 0.2 * np.mean([np.log(scores[i, 3 + i] / scores[i].sum()) for i in range(4)])
    assert float(info_nce(queries, keys, 3, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_sigreg_is_the_epps_pulley_statistic():
    vectors, directions = drawn(50, 5), torch.nn.functional.normalize(drawn(5, 7, seed=1), dim=0)
    t = np.linspace(-5, 5, 17)
    shadows = (vectors.double() @ directions.double()).numpy()
    phi = np.exp(1j * shadows[..., None] * t).mean(axis=0)
    error = np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
    expected = 50 * np.trapezoid(error, t, axis=-1).mean()
    assert float(sigreg(vectors, directions, lambda x: x, 50)) == pytest.approx(expected, rel=1e-4)


def test_sigreg_tells_what_is_normal_from_what_has_collapsed():
    directions = torch.nn.functional.normalize(drawn(16, 64, seed=1), dim=0)
    kinds = {"normal": drawn(512, 16), "a point": torch.zeros(512, 16), "a line": drawn(512, 1).expand(-1, 16)}
    found = {name: float(sigreg(x, directions, lambda v: v, 512)) for name, x in kinds.items()}
    assert found["normal"] < 2 and found["a point"] > 50 and found["a line"] > 20


def test_agreement_is_the_distance_from_the_mean_of_the_global_views():
    vectors = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[2.0, 6.0]]])
    assert float(agreement(vectors, 2)) == pytest.approx((1 + 1 + 36) / 6)


def test_pairs_at_chance_cost_ln_2_and_have_no_order():
    assert float(same_image_loss(torch.zeros(3), torch.zeros(3))) == pytest.approx(math.log(2))
    assert float(same_image_loss(torch.full((3,), 9.0), torch.full((3,), -9.0))) < 1e-3
    one, other = drawn(4, 6), drawn(4, 6, seed=1)
    assert torch.equal(pair_features(one, other), pair_features(other, one))


# --- position -----------------------------------------------------------------------------------


def test_tiles_lie_where_the_answer_says():
    """Pixels that hold their own row and column: the corners of both tiles can be read off."""
    images, side = 200, 64
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pixels = torch.stack([rows, columns]).float().expand(images, -1, -1, -1)
    view = View("global", pixels, torch.zeros(images, 4), None, torch.arange(images))
    net = build("resnet10_w8", size_px=16)
    method = RelativePosition(net, RelativePositionConfig(tile_px=16, jitter_px=2, drop_channels=False), seed=0)
    tiles, answers = method.tiles(view, 0)
    middle, neighbour = tiles[:, :, 0, 0].view(2, images, 2)
    assert tiles.shape == (2 * images, 2, 16, 16)
    assert ((middle - 24).abs() <= 2).all()
    assert ((neighbour - 24 - 24 * NEIGHBOURS[answers]).abs() <= 2).all()
    # Between them there is always a gap, so that no line runs on.
    apart = (neighbour - middle).abs().amax(dim=1)
    assert float(apart.min()) >= 16 + 8 - 4
    assert set(answers.tolist()) == set(range(8))
    again, _ = method.tiles(View("global", pixels[5:7], view.box[5:7], None, torch.tensor([5, 6])), 0)
    assert torch.equal(again[0], tiles[5])


def test_one_channel_is_left():
    x = drawn(2, 3, 4, 4)
    found = one_channel(x, torch.tensor([2, 0]))
    assert torch.equal(found[0, 2], x[0, 2]) and torch.equal(found[1, 0], x[1, 0])
    assert int((found != 0).any(dim=(2, 3)).sum()) == 2
