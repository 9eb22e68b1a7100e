"""Positions, patches and blocks: equal to their definitions, for one, two and three axes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from saccade.errors import ModelError, UsageError
from saccade.models.nn.attention import attention_rows
from saccade.models.nn.blocks import Block, DropPath
from saccade.models.nn.patch_embed import PatchEmbed, PatchProjection
from saccade.models.nn.positions import Positions, axial_rotation, coordinates, resize_table, rotate, sincos_table

GRIDS = [(6,), (3, 4), (2, 3, 2)]


@pytest.mark.parametrize("new", [(4, 4), (10, 10), (5, 9), (16, 3)])
def test_learned_tables_are_resized_as_timm_does(new):
    table = torch.randn(1, 49, 8)
    expected = resample_abs_pos_embed(table, list(new), [7, 7], num_prefix_tokens=0)
    torch.testing.assert_close(resize_table(table, (7, 7), new), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_resizing_any_number_of_axes_keeps_constants_and_gives_gradients(grid):
    new = tuple(2 * n + 1 for n in grid)
    table = torch.ones(1, math.prod(grid), 3, requires_grad=True)
    bigger = resize_table(table, grid, new)
    torch.testing.assert_close(bigger, torch.ones(1, math.prod(new), 3))
    bigger.sum().backward()
    assert table.grad is not None and table.grad.sum().item() == pytest.approx(bigger.numel(), rel=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_sincos_tells_every_place_apart(grid):
    table = sincos_table(grid, 26)[0]
    assert table.shape == (math.prod(grid), 26)
    distances = torch.cdist(table, table) + torch.eye(len(table)) * 9
    assert distances.min() > 0.05
    angle = coordinates(grid)[-1, -1]  # the last axis' first frequency is 1 a token
    first = (26 // (2 * len(grid))) * 2 * (len(grid) - 1)
    assert table[-1, first].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_rotary_scores_depend_on_the_offset_only(grid):
    """Equal contents everywhere: the score of two places is a function of their difference."""
    prefix = 2
    rotation = axial_rotation(grid, 14, prefix)
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 14, generator=g).expand(1, 1, prefix + math.prod(grid), 14) for _ in range(2))
    turned_q, turned_k = rotate(q, rotation), rotate(k, rotation)
    scores = (turned_q @ turned_k.transpose(-2, -1))[0, 0]
    torch.testing.assert_close(scores[:prefix, :prefix], (q @ k.transpose(-2, -1))[0, 0, :prefix, :prefix])
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    places = coordinates(grid)
    by_offset = {}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            by_offset.setdefault(tuple((a - b).tolist()), []).append(scores[prefix + i, prefix + j].item())
    assert all(max(v) - min(v) < 1e-4 for v in by_offset.values())
    means = sorted(sum(v) / len(v) for v in by_offset.values())
    assert max(b - a for a, b in itertools.pairwise(means)) > 1e-3  # and it does depend on it


@pytest.mark.usefixtures("unchecked")
def test_positions_refuse_what_does_not_fit():
    with pytest.raises(UsageError, match="did you mean 'learned'"):
        Positions("learnt", (2, 2), 8, 2, 1)
    with pytest.raises(ModelError, match="even"):
        Positions("rotary", (2, 2), 6, 2, 1)


def test_projection_is_a_convolution():
    layer, x = PatchProjection(3, 10, (4, 4)), torch.randn(2, 3, 12, 20)
    expected = F.conv2d(x, layer.weight, layer.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    volume, v = PatchProjection(1, 6, (2, 4, 4)), torch.randn(2, 1, 4, 8, 12)
    expected = F.conv3d(v, volume.weight, volume.bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(volume(v), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("axes", "size"), [(1, (24,)), (2, (16, 24)), (3, (8, 16, 8))])
@pytest.mark.parametrize("stem", ["linear", "conv", "stages"])
def test_tokens_of_any_number_of_axes(axes, size, stem):
    embed = PatchEmbed(2, 12, 8, stem=stem, axes=axes)
    tokens = embed(torch.randn(2, 2, *size))
    assert tokens.shape == (2, math.prod(embed.grid(size)), 12)
    assert embed.grid(size) == tuple(n // 8 for n in size)


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_do_not_fit_name_the_nearest():
    embed = PatchEmbed(3, 8, 16)
    with pytest.raises(ModelError, match=r"nearest: 96 x 64 or 112 x 80"):
        embed(torch.zeros(1, 3, 100, 70))
    with pytest.raises(ModelError, match=r"nearest: 16 x 16\b"):
        embed.grid((5, 5))
    with pytest.raises(ModelError, match="do not fit"):
        embed(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ModelError, match="power of two"):
        PatchEmbed(3, 8, 12, stem="conv")
    with pytest.raises(ModelError, match=r"4 or more(.|\n)*patch 4, or a plain ViT"):
        PatchEmbed(3, 8, 2, stem="stages")
    with pytest.raises(UsageError, match="stem"):
        PatchEmbed(3, 8, 16, stem="con")


@pytest.mark.usefixtures("unchecked")
def test_post_norm_block_is_the_equation():
    block, x = Block(12, 3, norm="post", layer_scale=0.5), torch.randn(2, 5, 12)
    y = F.layer_norm(x + 0.5 * block.attn(x), (12,), eps=1e-6)
    y = F.layer_norm(y + 0.5 * block.mlp(y), (12,), eps=1e-6)
    torch.testing.assert_close(block(x), y)
    pre = Block(12, 3, layer_scale=0.5)
    y = x + 0.5 * pre.attn(F.layer_norm(x, (12,), eps=1e-6))
    torch.testing.assert_close(pre(x), y + 0.5 * pre.mlp(F.layer_norm(y, (12,), eps=1e-6)))
    with pytest.raises(UsageError, match="norm"):
        Block(12, 3, norm="mid")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_what_a_block_shows_is_what_it_uses(norm):
    """softmax of the shown queries and keys, times the values, is the block's attention."""
    block, x = Block(12, 3, norm=norm), torch.randn(2, 5, 12)
    query, key, _ = block.queries_keys_values(x, None)
    entered = block.norm1(x) if norm == "pre" else x
    value = block.attn.split(entered, None)[2]
    mixed = attention_rows(query, key, torch.arange(5)) @ value
    torch.testing.assert_close(block.attn.proj(mixed.transpose(1, 2).flatten(2)), block.attn(entered))


def test_block_gradients_in_float64():
    torch.manual_seed(0)
    for norm in ("pre", "post"):
        block = Block(4, 2, norm=norm, mlp_ratio=1, layer_scale=0.7).double()
        x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(block, (x, axial_rotation((2,), 2, 1)))


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(20_000, 2, 3)
    y = drop(x)
    values = y.flatten(1)
    assert (values == values[:, :1]).all()
    assert values[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (drop.eval()(x) == x).all()
