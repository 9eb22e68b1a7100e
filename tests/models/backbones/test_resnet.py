"""ResNets against timm, their stems, and building by name."""

import pytest
import timm
import torch

from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build, count_parameters
from saccade.models.nn.attention import has_attention
from saccade.models.registry import CARDS, base_of, card_of, names


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equal_to_timm(name):
    torch.manual_seed(0)
    peer = timm.create_model(name, num_classes=0)
    peer(torch.randn(2, 3, 64, 64))  # running statistics away from their start
    peer.eval()
    net = build(name).eval()
    net.load_state_dict(peer.state_dict())
    x = torch.randn(2, 3, 96, 160)
    with torch.inference_mode():
        found, pooled, last = net(x), peer(x), peer.forward_features(x)
    assert found.grid == (3, 5)
    torch.testing.assert_close(found.cls, pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.tokens, last.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "stem", "stride"), [(32, "cifar", 8), (48, "small", 16), (64, "small", 16), (96, "imagenet", 32)]
)
def test_stem_follows_the_size(size, stem, stride):
    net = build("resnet10_w8", size_px=size).eval()
    assert net.config()["options"] == {"stem": stem} and net.stride_px == stride
    features = net(torch.randn(1, 3, size, size))
    assert features.grid == (size // stride, size // stride) and features.tokens.shape[1:] == (
        features.grid[0] ** 2,
        net.dim,
    )
    assert net.dim == features.cls.shape[1] == 64
    torch.testing.assert_close(features.cls, features.tokens.mean(1))
    assert build("resnet10_w8", size_px=size, options={"stem": "imagenet"}).config()["options"] == {"stem": "imagenet"}


@pytest.mark.parametrize("name", ["resnet10_w8", "resnet50_w4", "vit_micro_patch8", "vit_micro_patch8_conv"])
def test_every_kind_trains_and_a_batch_is_its_images(name):
    net = build(name, channels=2, size_px=32)
    features = net(torch.randn(4, 2, 32, 32))
    features.cls.square().mean().add(features.tokens.mean()).backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    x = torch.randn(2, 2, 24, 40)
    with torch.inference_mode():
        both, single = net(x), [net(x[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both.cls, torch.cat([s.cls for s in single]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.tokens, torch.cat([s.tokens for s in single]), atol=1e-5, rtol=1e-4)
    assert both.tokens.shape[1] == both.grid[0] * both.grid[1]


def test_a_cnn_has_no_attention_and_checks_its_input():
    net = build("resnet10_w8", size_px=32)
    assert not has_attention(net)
    with pytest.raises(ModelError, match="do not fit"):
        net(torch.zeros(1, 1, 32, 32))


def test_drop_path_without_effect_is_an_error():
    with pytest.raises(UsageError, match=r"option of resnet10(.|\n)*stem"):
        build("resnet10", options={"drop_path": 0.1})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tinny_patch8", {}, "did you mean 'vit_tiny_patch8'"),
        ("vit_tiny_patch0", {}, "unknown backbone"),
        ("resnet17", {}, "did you mean 'resnet1"),
        ("vit_tiny_patch8_c4", {}, "unknown backbone"),
        ("vit_tiny_patch8", {"position": "none"}, "did you mean 'positions'"),
        ("vit_tiny_patch8", {"stem": "conv"}, "unknown option"),
        ("resnet10", {"registers": 4}, "unknown option"),
        ("resnet10", {"stem": "big"}, "unknown stem"),
    ],
)
def test_unknown_words_get_a_suggestion(name, options, message):
    with pytest.raises(UsageError, match=message):
        build(name, options=options)


def test_counts_are_refused_when_not_positive():
    with pytest.raises(UsageError, match="must be positive"):
        build("resnet10", channels=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro_patch4", {"registers": 2, "positions": "rotary", "layer_scale": 0.1, "drop_path": 0.1}),
        ("vit_micro_patch8_conv", {"norm": "post", "positions": "sincos"}),
        ("resnet10_w8", {}),
    ],
)
def test_config_builds_the_same_network_and_seeds_decide(name, options):
    first = build(name, channels=2, size_px=32, options=options, seed=5)
    again = build(**first.config(), seed=5)
    other = build(**first.config(), seed=6)
    assert again.config() == first.config()
    state = first.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert any(not torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build("vit_micro_patch8", size_px=32)
    assert torch.equal(torch.rand(3), expected)


def test_every_architecture_is_offered_by_a_name():
    assert {(card_of(name).family, base_of(name)) for name in names()} == {
        (card.family, base) for card in CARDS for base in card.presets
    }
    assert count_parameters(torch.nn.Linear(3, 4)) == 16
