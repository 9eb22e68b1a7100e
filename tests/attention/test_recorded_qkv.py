"""Rows and rollout of recorded queries and keys are what the network computes."""

import numpy as np
import pytest
import torch

from saccade.attention.recorded_qkv import RecordedQKV
from saccade.errors import UsageError
from saccade.models.backbones.build import build


def recorded(model, pixels) -> RecordedQKV:
    with torch.inference_mode():
        layers, _ = model.projections(pixels, range(model.depth))
    parts = [torch.stack([layer[i][0] for layer in layers]).numpy() for i in range(3)]
    return RecordedQKV(*parts)


@pytest.fixture(scope="module")
def model():
    return build("vit_micro_patch8_w32", size_px=32, options={"registers": 2}).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_rows_are_those_of_the_network(model, pixels):
    found = recorded(model, pixels)
    assert found.tokens == 3 + 24 and found.depth == model.depth
    for layer in (0, model.depth - 1):
        with torch.inference_mode():
            wanted = model.attention(pixels, layer=layer, rows=torch.arange(found.tokens))[0].numpy()
        np.testing.assert_allclose(found.rows(layer, 0, found.tokens), wanted, atol=1e-6)
        np.testing.assert_allclose(found.all_layers(5)[layer], wanted[:, 5], atol=1e-6)


def test_rollout_is_that_of_the_network(model, pixels, monkeypatch):
    found = recorded(model, pixels)
    with torch.inference_mode():
        wanted = model.rollout(pixels, 4)[0].numpy()
    np.testing.assert_allclose(found.rollout(4)[0], wanted, atol=1e-6)
    monkeypatch.setattr("saccade.attention.recorded_qkv.ROLLED_TOKENS", 1)
    monkeypatch.setattr("saccade.models.nn.attention.CHUNK_ELEMENTS", 200)
    np.testing.assert_allclose(recorded(model, pixels).rollout(4)[0], wanted, atol=1e-6)


def test_the_numbers_of_a_pair_lead_to_its_weight(model, pixels):
    found = recorded(model, pixels)
    pair = found.pair(1, 0, 6, 9)
    assert pair.products.sum() == pytest.approx(pair.dot, abs=1e-5)
    assert pair.score == pytest.approx(pair.dot / np.sqrt(len(pair.query)), abs=1e-6)
    assert pair.weight == pytest.approx(np.exp(pair.score - pair.largest) / pair.total, rel=1e-9)
    row = found.rows(1, 6)[0, 0]
    assert pair.weight == pytest.approx(row[9], rel=1e-4)
    assert pair.rank == int((row > row[9]).sum())


def test_keys_that_are_not_seen_have_no_weight(model, pixels):
    whole = recorded(model, pixels)
    seen = np.eye(whole.tokens, dtype=bool) | (np.arange(whole.tokens) < 2)[None]
    found = RecordedQKV(whole.queries, whole.keys, whole.values, [seen] * whole.depth)
    rows = found.rows(0, 0, found.tokens)
    assert (rows[:, ~seen] == 0).all()
    assert found.visible_counts(0).tolist() == [2, 2] + [3] * (found.tokens - 2) and whole.visible_counts(0) is None
    np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=1e-6)
    with pytest.raises(UsageError, match="not visible"):
        found.pair(0, 0, 8, 9)


@pytest.mark.parametrize("asked", [(9, 0, 1), (0, -1, 1), (0, 0, 99), (0, 3, 0)])
def test_what_is_not_there_is_refused(model, pixels, asked):
    with pytest.raises(UsageError):
        recorded(model, pixels).rows(*asked)
