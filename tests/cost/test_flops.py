"""The arithmetic of costs against torch's counter on the networks, published figures, and matching by width."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.cost.flops import cost, matched
from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build, count_parameters
from saccade.models.nn import attention
from saccade.models.registry import names, parse

MILLIONS = (5e6, 11e6, 22e6)
STUDIED = (
    "resnet18",
    "resnet18_c4",
    "vit_tiny_patch8",
    "vit_tiny_patch8_window7",
    "hybrid_tiny_patch8",
    "swin_tiny_patch4_window7",
    "hvt_tiny_patch8",
)


def counted(name: str, size_px: int, channels: int, options: dict) -> tuple[int, int, int, int]:
    """What the network itself shows: parameters, what a second image adds to torch's count, tokens, width."""
    net, flops = build(name, size_px=size_px, channels=channels, options=options).eval(), []
    for images in (1, 2):
        with FlopCounterMode(display=False) as counter:
            features = net(torch.zeros(images, channels, size_px, size_px))
        flops.append(counter.get_total_flops())
    return count_parameters(net), flops[1] - flops[0], features.tokens.shape[1], net.dim


@pytest.mark.parametrize(
    ("name", "size_px", "channels", "options"),
    [
        ("vit_tiny_patch16", 224, 3, {}),
        ("vit_micro_patch4", 24, 1, {"registers": 5, "layer_scale": 0.1, "norm": "post"}),
        ("vit_micro_patch8", 40, 2, {"positions": "rotary", "registers": 1}),
        ("vit_micro_patch16_w48", 96, 3, {"positions": "sincos", "drop_path": 0.1}),
        ("vit_micro_patch8_conv", 64, 4, {"positions": "none"}),
        ("vit_micro_patch4_w12_conv", 16, 1, {}),
        ("vit_tiny_patch8_window7", 64, 3, {}),
        ("vit_micro_patch4_w32_window5", 44, 3, {"registers": 2}),
        ("vit_micro_patch4_w32_neighbourhood7", 44, 3, {}),
        ("vit_micro_patch4_w32_axial", 28, 1, {}),
        ("vit_micro_patch4_w32_strided4", 28, 3, {"registers": 1}),
        ("vit_micro_patch4_w32", 28, 3, {"attention": "neighbourhood:3"}),
        ("hybrid_tiny_patch8", 64, 3, {}),
        ("hybrid_micro_patch16", 96, 1, {"registers": 2}),
        ("hybrid_micro_patch4_w12", 20, 3, {}),
        ("resnet18", 224, 3, {}),
        ("resnet18_w24", 64, 3, {}),
        ("resnet10", 33, 1, {}),
        ("resnet10_w8", 51, 2, {"stem": "imagenet"}),
        ("resnet50_w16", 97, 3, {}),
        ("resnet50_w8", 32, 3, {"stem": "small"}),
        ("resnet10_c4", 96, 3, {}),
        ("resnet18_c4_w16", 35, 1, {}),
        ("resnet10_d4_w32", 64, 2, {}),
        ("resnet10_c8_w16", 101, 3, {}),
        ("resnet10_c8_w16", 32, 3, {"stem": "small"}),
        ("swin_micro_patch4_window7", 64, 3, {}),
        ("swin_micro_patch2_w24_window4", 80, 1, {"drop_path": 0.2}),
        ("swin_tiny_patch4_window7", 224, 3, {}),
        ("hvt_tiny_patch16", 224, 3, {}),
        ("hvt_micro_patch8", 72, 2, {"drop_path": 0.1}),
    ],
)
def test_equal_to_the_network(name, size_px, channels, options, monkeypatch):
    monkeypatch.setattr(attention, "EXPLICIT_TOKENS_FP32", 10**9)  # torch counts no fused attention on the CPU
    found = cost(name, size_px=size_px, channels=channels, options=options)
    assert (found.parameters, found.flops, found.tokens, found.dim) == counted(name, size_px, channels, options)


@pytest.mark.parametrize(
    ("name", "millions", "multiply_adds"),
    [
        ("vit_tiny_patch16", 5.5, 1.26e9),  # timm: 1.26 G multiply-adds with its classifier
        ("vit_small_patch16", 21.7, 4.61e9),
        ("vit_base_patch16", 85.8, 17.58e9),
        ("resnet18", 11.2, 1.82e9),
        ("resnet50", 23.5, 4.11e9),
        ("swin_tiny_patch4_window7", 27.5, 4.5e9),
        ("swin_small_patch4_window7", 48.8, 8.7e9),
        ("swin_base_patch4_window7", 86.7, 15.4e9),
    ],
)
def test_published_figures(name, millions, multiply_adds):
    """Of the papers and of timm, at 224 px, without a classifier."""
    found = cost(name, size_px=224)
    assert found.parameters == pytest.approx(millions * 1e6, rel=0.01)
    assert found.flops == pytest.approx(2 * multiply_adds, rel=0.03)


def test_every_network_has_a_cost():
    for name in names():
        size_px = 7 * max(8, parse(name).unit_px)
        assert cost(name, size_px=size_px).parameters > (5e4 if name.startswith("grid") else 5e5)


@pytest.mark.parametrize("name", STUDIED)
@pytest.mark.parametrize("target", MILLIONS)
def test_parameters_are_matched(name, target):
    found = matched(name, int(target), "params", size_px=64)
    assert cost(found, size_px=64).parameters == pytest.approx(target, rel=0.1)
    assert type(parse(found)) is type(parse(name))


@pytest.mark.parametrize("size_px", [64, 224])
@pytest.mark.parametrize("name", STUDIED)
@pytest.mark.parametrize("like", ["vit_tiny_patch8", "resnet18", "vit_small_patch8"])
def test_operations_are_matched(name, like, size_px):
    target = cost(like, size_px=size_px).flops
    found = matched(name, target, "flops", size_px=size_px)
    assert cost(found, size_px=size_px).flops == pytest.approx(target, rel=0.1)


def test_matching_changes_the_width_only():
    """No neighbouring width is nearer, and the rest of the name stays."""
    assert matched("vit_tiny_patch8_conv", 5_400_000, "params", size_px=64) == "vit_tiny_patch8_w192_conv"
    assert matched("resnet18_w500", cost("resnet18", size_px=64).flops, "flops", size_px=64) == "resnet18_w64"
    found = matched("vit_tiny_patch8_w96_window7", 9_000_000, "params", size_px=64)
    width = parse(found).width
    assert found == f"vit_tiny_patch8_w{width}_window7"
    distance, below, above = (
        abs(cost(f"vit_tiny_patch8_w{w}_window7", size_px=64).parameters - 9_000_000)
        for w in (width, width - 8, width + 8)
    )
    assert distance < min(below, above)


def test_what_cannot_be_is_refused():
    with pytest.raises(ModelError, match="64 x 64"):
        cost("vit_tiny_patch16", size_px=60)
    with pytest.raises(ModelError, match="multiples of 32 px"):
        cost("swin_tiny_patch4_window7", size_px=48)
    with pytest.raises(UsageError, match="did you mean"):
        cost("vit_tiny_patch8", size_px=64, options={"register": 4})
    with pytest.raises(UsageError, match="must be positive"):
        cost("resnet18", size_px=64, channels=0)
    with pytest.raises(UsageError, match="no width"):
        matched("resnet10", 10**13, "params", size_px=64)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16", {"positions": "polar"}),
        ("vit_tiny_patch16", {"norm": "mid"}),
        ("vit_tiny_patch16", {"attention": "window"}),
        ("vit_tiny_patch16", {"registers": -1}),
        ("hvt_tiny_patch16", {"drop_path": 1.0}),
        ("resnet18_c4", {"stem": "big"}),
    ],
)
def test_values_that_no_network_takes_have_no_price(name, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        cost(name, size_px=64, options=options)
    with pytest.raises(UsageError, match=next(iter(options))):
        build(name, options=options)
