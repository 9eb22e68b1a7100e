"""A ViT over vectors of tiles: what is not there has no influence, and positions do not depend on the grid's size."""

import pytest
import torch

from saccade.backbones.build import build
from saccade.errors import UsageError


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
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
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


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_has_no_influence(pool):
    """A grid says the same alone and beside larger ones, which is what batches of slides need."""
    net, x = network(pool), grids(2, 3, 5)
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


@pytest.mark.parametrize("options", [{"positions": "learned"}, {"attention": "window:3"}])
def test_options_that_cannot_be(options):
    with pytest.raises(UsageError, match="grid_micro"):
        build("grid_micro", channels=6, size_px=4, options=options)


@pytest.mark.parametrize("name", ["grid_micro_patch1", "grid_micro_conv", "grid_micro_window7", "grid_large"])
def test_names_that_are_not_there(name):
    with pytest.raises(UsageError, match="unknown backbone"):
        build(name)
