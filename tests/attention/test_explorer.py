"""The explorer's looks: kept and bounded, equal to what the network says, and the order question answered exactly."""

import numpy as np
import pytest
import torch

from saccade.attention.explorer import Explorer, LruCache, ViewRequest, shuffled
from saccade.attention.image import ModelInput
from saccade.base.contracts import InputSpec, Record, Sample
from saccade.errors import DamagedFile, UsageError
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import save_model

MODEL = "random:vit_micro_patch8_w32"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
IMAGE = Sample(PIXELS, Record("noise.png"))


@pytest.fixture(scope="module")
def explorer():
    return Explorer()


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> str:
    """A saved model with sine-cosine positions, which are large; learned ones are still small where they begin."""
    network = build("vit_micro_patch8_w32", size_px=64, options={"positions": "sincos"})
    spec = InputSpec(channels=3, size_px=64, offset=0.0, scale=255.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    folder = tmp_path_factory.mktemp("models") / "placed"
    save_model(folder, network, spec, about={})
    return str(folder)


def look(**other) -> ViewRequest:
    return ViewRequest(**({"model": MODEL, "image": "noise", "size_px": 64} | other))


def test_a_look_is_what_the_network_computes(explorer):
    seen = explorer.view(look(), IMAGE)
    network = explorer.model(look(), 3).backbone
    assert seen.grid == (8, 8) and seen.picture.shape == (3, 64, 64) and seen.prefix == 1
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    x = (torch.from_numpy(PIXELS).float() / 255 - mean[:, None, None]) / std[:, None, None]
    wanted = network.attention(x[None], layer=2, rows=torch.tensor([5])).detach().numpy()[0]
    np.testing.assert_allclose(seen.qkv.rows(2, 5), wanted, atol=1e-5)


def test_a_look_is_kept(explorer):
    first = explorer.view(look(), IMAGE)
    assert explorer.view(look(), None) is first and explorer.cached(look()) is first


@pytest.mark.parametrize("fresh", [False, True])
def test_without_positions_a_shuffle_only_shuffles_attention(explorer, placed, fresh):
    """The rows of a query are the same numbers, in the new order of the patches."""
    plain = explorer.view(look(model=placed, positions=False, fresh=fresh), IMAGE)
    mixed = explorer.view(look(model=placed, positions=False, fresh=fresh, shuffle=3), IMAGE)
    for layer in range(plain.qkv.depth):
        tokens = np.concatenate([[0], 1 + mixed.order])
        wanted = plain.qkv.rows(layer, 0, plain.qkv.tokens)[:, tokens][:, :, tokens]
        np.testing.assert_allclose(mixed.qkv.rows(layer, 0, mixed.qkv.tokens), wanted, atol=1e-6)


def test_with_positions_a_shuffle_changes_attention(explorer, placed):
    plain, mixed = (explorer.view(look(model=placed, shuffle=seed), IMAGE) for seed in (None, 3))
    tokens = np.concatenate([[0], 1 + mixed.order])
    wanted = plain.qkv.rows(1, 0)[:, :, tokens]
    assert np.abs(mixed.qkv.rows(1, 0) - wanted).max() > 1e-4


def test_a_shuffle_moves_whole_patches_and_says_where():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(8, axis=0).repeat(8, axis=1)[None].repeat(3, axis=0)
    seen, order = shuffled(ModelInput(torch.from_numpy(image.astype(np.float32))[None], image), 8, 1)
    np.testing.assert_array_equal(seen.image[0, ::8, ::8].ravel(), order)
    np.testing.assert_array_equal(seen.x[0].numpy(), seen.image)


def test_local_attention_is_masked(explorer):
    seen = explorer.view(look(model="random:vit_micro_patch8_window4"), IMAGE)
    row = seen.qkv.rows(0, 1)[0, 0]
    assert (row[1:].reshape(8, 8)[4:] == 0).all() and row.sum() == pytest.approx(1, abs=1e-5)
    even, shifted = seen.about()["visible"][:2]
    assert even == [65] + [17] * 64 and shifted[:4] == [65, 5, 5, 9]  # every other layer's windows are moved by half


def test_a_cnn_is_asked_how_alike_its_places_are(explorer):
    seen = explorer.view(look(model="random:resnet10_w16"), IMAGE)
    alike = seen.similarity(0, 1 + seen.grid[0] * seen.grid[1])
    assert seen.qkv is None
    np.testing.assert_allclose(np.diagonal(alike[0]), 1, atol=1e-5)
    with pytest.raises(UsageError, match="no position embedding"):
        explorer.view(look(model="random:resnet10_w16", positions=False), IMAGE)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("model", [MODEL, "random:resnet10_w16"])
def test_pixels_that_are_no_numbers_are_refused_with_the_file_named(explorer, model, wrong):
    pixels = np.ones((1, 64, 64))
    pixels[0, 3, 5] = wrong
    with pytest.raises(DamagedFile, match=r"holes\.tif: contains NaN or infinite values"):
        explorer.view(look(model=model, image=f"{wrong}"), Sample(pixels, Record("holes.tif")))


@pytest.mark.parametrize("model", [MODEL, "random:resnet10_w16"])
def test_a_strip_that_would_be_enlarged_to_gigabytes_is_refused_before(explorer, model, monkeypatch):
    def never(*_):
        raise AssertionError("enlarged")

    monkeypatch.setattr("saccade.attention.explorer.to_model_input", never)
    strip = Sample(np.zeros((3, 2, 1000), np.uint8), Record("strip.png"))
    with pytest.raises(UsageError, match=r"too many pixels to explore[^!]*224 x 112000"):
        explorer.view(look(model=model, image="strip", size_px=224), strip)
    monkeypatch.setattr("saccade.attention.explorer.VIEW_BYTES", 1000)
    with pytest.raises(UsageError, match="too many patches"):
        explorer.view(look(model=model, image="other", size_px=224), IMAGE)


def test_memory_is_bounded(monkeypatch):
    kept = LruCache[str, str](10)
    for name in "abc":
        kept.put(name, name, 4)
    assert kept.get("a") is None and kept.get("b") == "b" and len(kept) == 2
    kept.put("large", "large", 99)
    assert len(kept) == 1
    monkeypatch.setattr("saccade.attention.explorer.VIEW_BYTES", 1000)
    with pytest.raises(UsageError, match="too many patches"):
        Explorer().view(look(), IMAGE)
