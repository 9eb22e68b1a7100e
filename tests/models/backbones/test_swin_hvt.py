"""Swin against timm and against attention written out pair by pair; HVT's pooling; loading, sizes, mistakes."""

import math

import pytest
import safetensors.torch
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from saccade.base.contracts import InputSpec
from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build
from saccade.models.backbones.swin import SwinSettings
from saccade.models.backbones.weights import load_model, load_timm_state, save_model, to_timm_state
from saccade.models.nn.hvt import HVT, pool_tokens
from saccade.models.nn.swin import Swin, SwinBlock, WindowAttention, hidden_pairs, offset_rows
from saccade.models.registry import parse

NAME, IN_TIMM = "swin_tiny_patch4_window7", "swin_tiny_patch4_window7_224"


def shaken(net: nn.Module) -> nn.Module:
    """Every parameter away from its start, so that none can be left out or swapped unseen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for key, value in net.named_parameters():
            value.add_(torch.randn_like(value) * (0.5 if key.endswith("table") else 0.02 if value.ndim > 1 else 0.1))
    return net.eval()


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    return shaken(timm.create_model(IN_TIMM, pretrained=False, num_classes=0))


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def expected(peer, pixels):
    with torch.inference_mode():
        return peer.forward_features(pixels).flatten(1, 2), peer(pixels)


def as_timm(net, pixels, expected):
    with torch.inference_mode():
        found = net(pixels)
    assert found.grid == (7, 7) and net.stride_px == 32 and net.dim == 768
    torch.testing.assert_close(found.tokens, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.cls, expected[1], atol=1e-5, rtol=1e-5)


# --- weights of timm ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", f"@{NAME}"])
def test_a_file_of_timm(tmp_path, peer, pixels, expected, suffix):
    """With a classifier, and with the buffers that older versions wrote."""
    state = dict(peer.state_dict()) | {"head.fc.weight": torch.zeros(5, 768), "head.fc.bias": torch.zeros(5)}
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    safetensors.torch.save_file(state, tmp_path / "swin.safetensors")
    loaded = load_model(f"{tmp_path / 'swin.safetensors'}{suffix}")
    assert loaded.backbone.name == NAME and loaded.spec.size_px == 224 and loaded.spec.channels == 3
    as_timm(loaded.backbone, pixels, expected)


def test_a_name_of_timm(monkeypatch, peer, pixels, expected):
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, num_classes: peer)
    loaded = load_model(f"timm:{IN_TIMM}.ms_in1k")
    assert loaded.name == f"timm:{IN_TIMM}.ms_in1k" and loaded.spec.mean == tuple(peer.pretrained_cfg["mean"])
    as_timm(loaded.backbone, pixels, expected)


def test_export_to_timm_and_back(peer, pixels):
    net = shaken(build(NAME, seed=3))
    before = {key: value.clone() for key, value in peer.state_dict().items()}
    peer.load_state_dict(to_timm_state(net), strict=True)
    with torch.inference_mode():
        expected = peer.forward_features(pixels).flatten(1, 2), peer(pixels)
    peer.load_state_dict(before)
    as_timm(net, pixels, expected)
    again = build(NAME, seed=4)
    load_timm_state(again, to_timm_state(net))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_grey_images_take_the_sum_of_three_channels(peer):
    grey, colour = build(NAME, channels=1).eval(), build(NAME).eval()
    for net in (grey, colour):
        load_timm_state(net, peer.state_dict())
    x = torch.randn(1, 1, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(grey(x).cls, colour(x.expand(-1, 3, -1, -1)).cls, atol=1e-4, rtol=1e-4)


def test_weights_of_other_networks_are_refused(tmp_path, peer):
    safetensors.torch.save_file(dict(peer.state_dict()), tmp_path / "swin.safetensors")
    with pytest.raises(ModelError, match=r"not those of vit_tiny_patch16(.|\n)*swin_tiny_patch4_window7"):
        load_model(f"{tmp_path / 'swin.safetensors'}@vit_tiny_patch16")
    with pytest.raises(ModelError, match=r"do not fit swin_tiny_patch4_window8(.|\n)*relative_position_bias_table"):
        load_model(f"{tmp_path / 'swin.safetensors'}@swin_tiny_patch4_window8")
    odd = {key: value for key, value in peer.state_dict().items() if not key.startswith("layers.2.blocks.5")}
    safetensors.torch.save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=r"does not build(.|\n)*\(2, 2, 5, 2\)(.|\n)*swin_small"):
        load_model(tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match="no counterpart in timm"):
        to_timm_state(build("hvt_micro_patch8_w32", size_px=32))


SMALL = SwinSettings("swin_small", dim=16, depths=(2, 1, 2, 2), heads=(1, 2, 4, 8), patch=2, window=4)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (32, 32), (32, 64)])
def test_as_timm_where_a_map_is_no_larger_than_a_window(size):
    """At 32 px the last map is 2 x 2. timm's table for it is the middle of ours."""
    net = shaken(Swin(SMALL))
    theirs = SwinTransformer(
        size, patch_size=2, num_classes=0, embed_dim=16, depths=SMALL.depths, num_heads=SMALL.heads, window_size=4
    ).eval()
    state = to_timm_state(net)
    for key, value in theirs.state_dict().items():
        if key.endswith("table") and value.shape != state[key].shape:
            module = theirs.get_submodule(key.rpartition(".")[0])
            (tall, wide), heads = module.window_size, module.num_heads
            whole = state[key].view(7, 7, heads)
            state[key] = whole[4 - tall : 3 + tall, 4 - wide : 3 + wide].reshape(-1, heads)
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        found = net(x)
        torch.testing.assert_close(found.tokens, theirs.forward_features(x).flatten(1, 2), atol=1e-5, rtol=1e-5)


# --- windows ------------------------------------------------------------------------------------


def window_of(grid, window, *, shifted):
    """Row and column of the window of every token. Nothing is rolled or padded: borders are counted out."""
    shifts = [window // 2 if shifted and length > window else 0 for length in grid]
    places = torch.cartesian_prod(*(torch.arange(length) for length in grid)).view(-1, 2)
    return (places - torch.tensor(shifts)).div(window, rounding_mode="floor"), places


def slowly(attention, x):
    """The attention of a block over all pairs of tokens, those of other windows masked."""
    batch, height, width, dim = x.shape
    of, places = window_of((height, width), attention.window, shifted=attention.shifted)
    seen = (of[:, None] == of[None]).all(-1)
    offsets = (places[:, None] - places[None]).clamp(1 - attention.window, attention.window - 1)
    side = 2 * attention.window - 1
    table = attention.relative_position_bias_table.view(side, side, -1)
    bias = table[offsets[..., 0] + attention.window - 1, offsets[..., 1] + attention.window - 1].permute(2, 0, 1)
    parts = attention.qkv(x.flatten(1, 2)).chunk(3, dim=-1)
    query, key, value = (p.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for p in parts)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + bias
    mixed = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1) @ value
    return attention.proj(mixed.transpose(1, 2).reshape(batch, height, width, dim))


GRIDS = [((8, 8), 4), ((9, 6), 3), ((8, 8), 7), ((5, 7), 3), ((10, 4), 4), ((3, 11), 5), ((2, 2), 7), ((1, 1), 3)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("grid", "window"), GRIDS)
def test_windows_are_masked_pairs(grid, window, shifted):
    """Values and all gradients; tiled, padded, and smaller maps; both ways of attention."""
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, window, shifted=shifted).double()
    nn.init.normal_(attention.relative_position_bias_table)
    nn.init.normal_(attention.qkv.bias)  # what padding would leak: its keys and values are not zero
    x = torch.randn(2, *grid, 8, dtype=torch.float64, requires_grad=True)
    found, wanted = attention(x), slowly(attention, x)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), wanted, atol=1e-10, rtol=1e-10)
    weights, inputs = torch.randn_like(found), [x, *attention.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (found, wanted))):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("grid", "window"), [((8, 8), 4), ((10, 7), 3)])
def test_a_token_is_seen_in_its_window_and_over_its_border_in_the_next_block(grid, window):
    """One token moves: exactly its window changes, then exactly the shifted windows that touch this one."""
    torch.manual_seed(0)
    blocks = [SwinBlock(8, 2, window, shifted=shifted, drop_path=0.0).eval() for shifted in (False, True)]
    straight, _ = window_of(grid, window, shifted=False)
    shifted, _ = window_of(grid, window, shifted=True)
    x = torch.randn(1, grid[0] * grid[1], 8)
    for token in (0, len(straight) // 2 + 1, len(straight) - 1):
        moved = x.clone()
        moved[0, token] += torch.randn(8)
        with torch.no_grad():
            before, after = blocks[0](x, grid), blocks[0](moved, grid)
            own = (straight == straight[token]).all(-1)
            assert torch.equal((before != after).any(-1)[0], own)
            touched = (shifted[:, None] == shifted[own][None]).all(-1).any(-1)
            assert torch.equal((blocks[1](before, grid) != blocks[1](after, grid)).any(-1)[0], touched)
        assert own.sum() < touched.sum() < len(x[0])


def test_masks_made_without_gradients_serve_training():
    """They are kept; kept as inference tensors they would break the next backward pass."""
    hidden_pairs.cache_clear()
    offset_rows.cache_clear()
    net, x = Swin(SMALL), torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        first = net.eval()(x).cls
    found = net.train()(x).cls
    found.sum().backward()
    torch.testing.assert_close(found, first, atol=1e-5, rtol=1e-5)
    made = hidden_pairs.cache_info().misses
    net(x)
    assert hidden_pairs.cache_info().misses == made


# --- whole networks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("swin_micro_patch2_w16_window4", [(16, 16), (32, 32), (64, 32), (48, 80)]),
        ("swin_micro_patch2_w16_window7", [(16, 32), (64, 64)]),
        ("hvt_micro_patch8_w32", [(8, 8), (16, 8), (24, 40), (64, 64)]),
    ],
)
def test_sizes_batches_and_meaning_of_features(name, sizes):
    net = shaken(build(name, channels=2, size_px=64))
    for size in sizes:
        x = torch.randn(2, 2, *size)
        with torch.inference_mode():
            both, single = net(x), [net(x[i : i + 1]) for i in range(2)]
        assert both.grid == tuple(math.ceil(side / net.stride_px) for side in size)
        assert both.tokens.shape == (2, math.prod(both.grid), net.dim) and both.cls.shape == (2, net.dim)
        torch.testing.assert_close(both.tokens, torch.cat([s.tokens for s in single]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.cls, both.tokens.mean(1))


@pytest.mark.parametrize("name", ["swin_micro_patch2_w16_window4", "hvt_micro_patch8_w32"])
def test_gradients_reach_every_parameter(name):
    net = shaken(build(name, size_px=64, options={"drop_path": 0.1})).train()
    torch.manual_seed(0)
    features = net(torch.randn(16, 3, 64, 64))
    (features.cls.square().mean() + features.tokens.pow(3).mean()).backward()
    assert not [key for key, value in net.named_parameters() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize("name", ["swin_micro_patch2_w16_window7", "hvt_micro_patch8_w32"])
def test_half_precision(name):
    """Masks of minus infinity and padding leave no holes in bf16, forward and backward."""
    net, x = build(name, size_px=48), torch.randn(2, 3, 48, 48)
    exact = net(x).cls
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x).cls
    rough.float().square().sum().backward()
    assert all(value.grad.isfinite().all() for value in net.parameters())
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["swin_micro_patch2_w16_window4", "hvt_micro_patch8_w32"])
def test_saved_and_loaded(tmp_path, name):
    net = shaken(build(name, channels=1, size_px=32, options={"drop_path": 0.2}, seed=5))
    spec = InputSpec(1, 32, 0.0, 255.0, (0.5,), (0.2,))
    save_model(tmp_path / "model", net, spec, about={})
    loaded = load_model(tmp_path / "model")
    assert loaded.backbone.config() == net.config() and loaded.backbone.settings == net.settings
    x = torch.randn(2, 1, 32, 48)
    with torch.inference_mode():
        assert torch.equal(loaded.backbone(x).tokens, net(x).tokens)


def test_stochastic_depth_rises_over_all_blocks():
    swin = build("swin_tiny_patch4_w32_window7", options={"drop_path": 0.22})
    rates = [block.drop_path.rate for stage in swin.layers for block in stage.blocks]
    assert rates == pytest.approx([0.02 * layer for layer in range(12)])
    hvt = build("hvt_micro_patch8_w32", size_px=32, options={"drop_path": 0.5})
    assert [block.drop_path.rate for block in hvt.blocks] == pytest.approx([0.1 * layer for layer in range(6)])
    for name in ("swin_micro_patch4_window7", "hvt_micro_patch8"):
        with pytest.raises(UsageError, match="drop_path is out of range"):
            build(name, size_px=32, options={"drop_path": 1.0})


@pytest.mark.usefixtures("unchecked")
def test_pixels_that_do_not_fit():
    swin, hvt = build("swin_micro_patch2_w16_window4"), build("hvt_micro_patch8_w32", size_px=32)
    with pytest.raises(ModelError, match=r"40 x 16 px(.|\n)*multiples of 16 px(.|\n)*nearest: 32 x 16"):
        swin(torch.zeros(1, 3, 40, 16))
    with pytest.raises(ModelError, match=r"8 x 16 px(.|\n)*nearest: 16 x 16"):
        swin(torch.zeros(1, 3, 8, 16))
    for net in (swin, hvt):
        with pytest.raises(ModelError, match=r"shape \(1, 1, 32, 32\)"):
            net(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ModelError, match=r"patch of 8 px(.|\n)*nearest"):
        hvt(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ModelError, match="patch of 8 px"):
        build("hvt_micro_patch8", size_px=36)


# --- HVT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 2), (3, 5), (4, 7)])
def test_pooling_takes_the_greatest_around_every_second_token(grid):
    x = torch.randn(2, grid[0] * grid[1], 3, requires_grad=True)
    found, smaller = pool_tokens(x, grid)
    plane, wanted = x.unflatten(1, grid), []
    for row in range(0, grid[0], 2):
        for column in range(0, grid[1], 2):
            near = plane[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            wanted.append(near.flatten(1, 2).amax(1))
    wanted = torch.stack(wanted, 1)
    assert smaller == ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    assert torch.equal(found, wanted)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_pooling_comes_before_the_named_blocks_and_tells_positions_again():
    net = shaken(build("hvt_micro_patch8_w32", size_px=64))
    assert isinstance(net, HVT) and parse(net.name).pools == (2, 4) and net.stride_px == 32
    counts = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].shape[1]))
    x = torch.full((1, 3, 64, 64), 0.3)
    with torch.inference_mode():
        net(x)
        assert counts == [64, 64, 16, 16, 4, 4]
        # Of an image without content, only positions make tokens differ: each table is enough.
        for kept in range(3):
            for index, positions in enumerate(net.positions):
                positions.table.copy_(torch.randn_like(positions.table) * (index == kept))
            tokens = net(x).tokens[0]
            assert torch.pdist(tokens).min() > 1e-2
        for positions in net.positions:
            positions.table.zero_()
        assert torch.pdist(net(x).tokens[0]).max() < 1e-4
