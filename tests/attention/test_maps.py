"""Attention maps of a fake network with known weights, and of the real networks of this package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saccade.attention.maps import attention_map, token_similarity
from saccade.base.contracts import Features
from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build
from saccade.models.nn.attention import AttentiveNetwork
from saccade.models.nn.network import Network
from saccade.models.registry import parse


class Known(AttentiveNetwork):
    """Two prefix tokens and a 2 x 3 grid; row r of head h gives all its weight to token (r + h) mod 8."""

    def __init__(self):
        settings = parse("vit_micro_patch8")
        super().__init__(settings, dim=4, stride_px=8, depth=3, heads=2, prefix=2)

    def forward(self, pixels):
        return Features(torch.ones(1, 4), torch.eye(6, 4)[None], (2, 3))

    def projections(self, pixels, layers):
        """Scores so far apart that the softmax is one-hot: queries and keys are scaled unit vectors."""
        self.layers = list(layers)
        key = 100 * torch.eye(8).expand(1, 2, 8, 8)
        query = torch.stack([torch.eye(8).roll(head, dims=1) for head in range(2)])[None] * 100
        return [(query, key, key)] * len(self.layers), (2, 3)

    def key_mask(self, pixels, grid, layer, rows):
        return None

    def without_positions(self):
        return self


class Flat(Network):
    """A network without attention, on a grid of the given shape."""

    def __init__(self, grid):
        super().__init__(parse("resnet10"), dim=4, stride_px=8)
        self.grid = grid

    def forward(self, pixels):
        count = int(np.prod(self.grid))
        return Features(torch.tensor([[1.0, 0, 0, 0]]), torch.eye(count, 4)[None], self.grid)


PIXELS = torch.zeros(1, 3, 16, 24)


def test_rows_of_a_patch_land_on_the_grid():
    backbone = Known()
    amap = attention_map(backbone, PIXELS, query=(9, 17))  # the last patch: token 2 + 5 = 7
    assert amap.kind == "attention" and amap.grid == (2, 3) and amap.size_px == (16, 24)
    assert amap.values[0].tolist() == [[0, 0, 0], [0, 0, 1]]  # head 0 looks at itself
    assert amap.values[1].sum() == 0  # head 1 looks at token 0, the class token
    assert amap.prefix_share.tolist() == [0, 1]
    assert amap.mean[1, 2] == 0.5
    assert amap.query_box == (8, 16, 8, 8)
    assert [amap.layer] == backbone.layers == [2]


def test_the_class_token_asks_row_zero():
    amap = attention_map(Known(), PIXELS, query="cls", layer=0)
    assert amap.query_box is None and amap.layer == 0
    assert amap.values.sum() == 0 and amap.prefix_share.tolist() == [1, 1]


def test_rollout_has_one_map():
    amap = attention_map(Known(), PIXELS, query="cls", rollout=True)
    assert amap.kind == "rollout" and amap.layer is None and amap.values.shape == (1, 2, 3)
    assert amap.values.sum() + amap.prefix_share.sum() == pytest.approx(1)


def test_networks_without_attention_show_similarity():
    amap = attention_map(Flat((2, 2)), PIXELS, query=(0, 23))
    assert amap.kind == "similarity" and amap.values.tolist() == [[[0, 1], [0, 0]]]
    whole = attention_map(Flat((2, 2)), PIXELS, query="cls")
    assert whole.values.tolist() == [[[1, 0], [0, 0]]]


def test_similarity_ignores_length():
    features = Features(torch.ones(1, 2), torch.tensor([[[2.0, 0], [0, 3], [-1, 0]]]), (1, 3))
    assert token_similarity(features, 0).tolist() == [1, 0, -1]


def test_what_cannot_be_asked():
    with pytest.raises(UsageError, match="outside the image"):
        attention_map(Known(), PIXELS, query=(16, 0))
    with pytest.raises(UsageError, match="no such layer"):
        attention_map(Known(), PIXELS, query="cls", layer=3)
    with pytest.raises(UsageError, match="rollout needs"):
        attention_map(Flat((2, 2)), PIXELS, query="cls", rollout=True)
    with pytest.raises(ModelError, match="are not positions in the image"):
        attention_map(Flat((1, 2, 2)), PIXELS, query="cls")
    with pytest.raises(UsageError, match="invalid query"):
        attention_map(Known(), PIXELS, query="middle")


@pytest.mark.parametrize("query", ["cls", (20, 41)])
def test_real_transformer(query):
    backbone = build("vit_tiny_patch16", size_px=64, seed=0).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for rollout in (False, True):
        amap = attention_map(backbone, pixels, query=query, rollout=rollout)
        assert amap.values.shape == ((1 if rollout else backbone.heads), 4, 4)
        assert amap.values.sum(axis=(1, 2)) + amap.prefix_share == pytest.approx(1, abs=1e-5)
        assert (amap.values >= 0).all()
    assert amap.query_box == (None if query == "cls" else (16, 32, 16, 16))


def test_real_convolutional_network():
    backbone = build("resnet18", size_px=64, seed=0).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    amap = attention_map(backbone, pixels, query=(0, 0))
    assert amap.kind == "similarity" and amap.values[0, 0, 0] == pytest.approx(1, abs=1e-5)
    assert np.abs(amap.values).max() <= 1 + 1e-5
