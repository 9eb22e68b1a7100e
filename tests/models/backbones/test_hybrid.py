"""The hybrid: residual stages before a transformer. What holds for every network: test_contract.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saccade.errors import ModelError
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import to_timm_state
from saccade.models.nn.patch_embed import ResidualStage, residual_stages
from saccade.models.registry import parse


@pytest.mark.parametrize(("patch", "widths"), [(4, [48, 96]), (8, [24, 48, 96]), (16, [12, 24, 48, 96])])
def test_every_stage_halves_the_map_and_doubles_the_width(patch, widths):
    stem, x = residual_stages(3, 96, patch, 2), torch.randn(2, 3, 32, 64)
    found = []
    for part in stem:
        x = part(x)
        if isinstance(part, nn.ReLU | ResidualStage):
            found.append((x.shape[1], x.shape[2], x.shape[3]))
    assert found == [(width, 32 >> k, 64 >> k) for k, width in enumerate(widths, start=1)]
    assert found[-1][1:] == (32 // patch, 64 // patch)


@pytest.mark.parametrize(("inputs", "width"), [(6, 12), (8, 8)])
def test_a_stage_is_its_equation(inputs, width):
    """Shortcut plus branch, with a shortcut that is a 1x1 convolution of stride 2, or every second pixel."""
    torch.manual_seed(0)
    stage, x = ResidualStage(inputs, width, 2), torch.randn(2, inputs, 12, 16)
    if inputs == width:
        kept = F.interpolate(x, scale_factor=0.5, mode="nearest")
    else:
        kept = plain_norm(F.conv2d(x, stage.shortcut.weight, stride=2))
    branch = F.relu(plain_norm(F.conv2d(x, stage.conv1.weight, stride=2, padding=1)))
    branch = plain_norm(F.conv2d(branch, stage.conv2.weight, padding=1))
    torch.testing.assert_close(stage(x), kept + branch, atol=1e-5, rtol=1e-4)


def plain_norm(x):
    return F.batch_norm(x, None, None, training=True)


def test_convolutions_start_as_he_et_al():
    stem = residual_stages(3, 128, 8, 2)
    for module in stem.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_tokens_differ_at_the_start():
    """What all tokens have in common is less than what tells them apart; a ResNet's last ReLU made it more."""
    torch.manual_seed(0)
    tokens = build("hybrid_micro_patch8", size_px=64).patch_embed(torch.randn(8, 3, 64, 64)).flatten(0, 1)
    assert tokens.mean(dim=0).norm() < tokens.std(dim=0).norm()


def test_it_counts_as_a_network_with_batch_norm():
    """DINO gives such networks batch norm in its head (docs/log.md)."""
    assert parse("hybrid_micro_patch8").capabilities.batch_norm
    assert not parse("vit_micro_patch8_conv").capabilities.batch_norm


def test_timm_has_no_such_stem():
    with pytest.raises(ModelError, match="timm"):
        to_timm_state(build("hybrid_micro_patch8_w32", size_px=32))
