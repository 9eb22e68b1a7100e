"""A ViT over vectors of tiles: what is not there has no influence, and positions do not depend on the grid's size."""

import pytest
import torch

from saccade.errors import UsageError
from saccade.models.backbones.build import build


def network(pool: str = "cls", positions: str = "sincos"):
    options = {"pool": pool, "positions": positions}
    return build("grid_micro_w32", channels=6, size_px=4, options=options, seed=1).eval()


def grids(count: int, rows: int, columns: int, *, missing: float = 0.3) -> torch.Tensor:
    """Vectors of width 5 and, last, whether a tile is there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, rows, columns, generator=generator)
    x[:, -1] = (torch.rand(count, rows, columns, generator=generator) >= missing).float()
    return x


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["sincos", "rotary", "conv"])
def test_what_is_not_there_has_no_influence(pool, positions):
    net, x = network(pool, positions), grids(3, 4, 5)
    there = x[:, -1:] > 0.5
    other = torch.where(there, x, 100 * torch.randn_like(x))
    other[:, -1] = x[:, -1]
    with torch.inference_mode():
        first, second = net(x), net(other)
    assert torch.equal(first.cls, second.cls) and torch.equal(first.tokens, second.tokens)
    assert first.tokens[~there.flatten(1)].abs().max() == 0
    moved = x.clone()
    moved[:, :5] += there * 0.1
    with torch.inference_mode():
        assert not torch.allclose(net(moved).cls, first.cls)


@pytest.mark.parametrize("positions", ["sincos", "conv"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_has_no_influence(pool, positions):
    """A grid says the same alone and beside larger ones, which is what batches of slides need."""
    net, x = network(pool, positions), grids(2, 3, 5)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 4))
    with torch.inference_mode():
        assert (net(x).cls - net(padded).cls).abs().max() < 1e-5


def test_nothing_there_is_finite():
    with torch.inference_mode():
        assert network()(grids(1, 2, 2, missing=1.1)).cls.isfinite().all()
        assert network("mean")(grids(1, 2, 2, missing=1.1)).cls.isfinite().all()


def test_attention_leaves_out_what_is_not_there():
    net, x = network(), grids(2, 4, 4)
    hidden = x[:, -1].flatten(1) < 0.5
    with torch.inference_mode():
        rows = net.attention(x, layer=-1, rows=torch.tensor([0, 3]))
        rollout = net.rollout(x, 0)
    assert (rows.sum(dim=-1) - 1).abs().max() < 1e-5
    assert rows[..., 1:].transpose(1, 3)[hidden].abs().max() == 0
    assert rollout[:, 1:][hidden].abs().max() == 0


@pytest.mark.parametrize("positions", ["sincos", "rotary", "conv"])
def test_what_is_left_out_has_no_influence(positions):
    """With ``keep`` a network knows the tiles it is shown alone, not even through their neighbours."""
    net, x = network(positions=positions), grids(2, 4, 4)
    keep = torch.tensor([[0, 1, 4, 7, 9], [2, 3, 8, 14, 15]])
    shown = torch.zeros(2, 16, dtype=torch.bool).scatter(1, keep, True).view(2, 1, 4, 4)
    other = torch.where(shown, x, torch.randn_like(x))
    other[:, -1] = x[:, -1]
    with torch.inference_mode():
        first, second = net(x, keep=keep), net(other, keep=keep)
    assert torch.allclose(first.cls, second.cls, atol=1e-6) and torch.allclose(first.tokens, second.tokens, atol=1e-6)
    gone = ~(x[:, -1].flatten(1) > 0.5).gather(1, keep)
    assert gone.any() and first.tokens[gone].abs().max() == 0


def test_convolved_positions_are_a_look_at_the_neighbours():
    """Before the first block a token knows the eight tiles around it and no other, wherever it lies."""
    net, x = network(positions="conv"), grids(1, 6, 6, missing=0)
    x.requires_grad_()
    tokens = net.patch_embed(x)
    added = net.positions.added((6, 6), tokens, net.patch_embed.present(x))
    added[0, 2 * 6 + 3].sum().backward()
    near = x.grad[0, :5].abs().sum(dim=0) > 0
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(near, expected)
    with pytest.raises(UsageError, match="positions=conv is for grids"):
        build("vit_micro_patch8", channels=3, size_px=32, options={"positions": "conv"})


@pytest.mark.parametrize("options", [{"positions": "learned"}, {"attention": "window:3"}])
def test_options_that_cannot_be(options):
    with pytest.raises(UsageError, match="grid_micro"):
        build("grid_micro", channels=6, size_px=4, options=options)


@pytest.mark.parametrize("name", ["grid_micro_patch1", "grid_micro_conv", "grid_micro_window7", "grid_large"])
def test_names_that_are_not_there(name):
    with pytest.raises(UsageError, match="unknown backbone"):
        build(name)
