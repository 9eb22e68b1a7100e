"""An equivariant ResNet: its tokens rotate with the image, its pooled vector is invariant.

The residual network of He et al. 2016 (arXiv:1512.03385) with the layers of ``nn/group_conv``: Cohen and Welling 2016
(arXiv:1602.07576), Lafarge et al. 2021 (arXiv:2002.08725). Rotations by 90 degrees (and flips, for d4) are exact for
images of any size: maps are halved by means and not by a stride that would miss the centre.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Features
from saccade.models.backbones.equivariant import EquivariantSettings
from saccade.models.nn.group_conv import GroupConv, GroupNorm2d, halve, halve_by_maximum, make_odd, over_orientations
from saccade.models.nn.network import Network
from saccade.models.nn.patch_embed import check_pixels
from saccade.models.settings import ORDER, Group


class GroupBlock(nn.Module):
    """Two 3x3 group convolutions with a shortcut; ``halves`` the map beforehand where a ResNet has its stride."""

    def __init__(self, group: Group, inputs: int, fields: int, *, halves: bool):
        super().__init__()
        self.halves = halves
        self.conv1, self.bn1 = GroupConv(group, inputs, fields, 3), GroupNorm2d(group, fields)
        self.conv2, self.bn2 = GroupConv(group, fields, fields, 3), GroupNorm2d(group, fields)
        same = inputs == fields and not halves
        self.shortcut = None if same else nn.Sequential(GroupConv(group, inputs, fields, 1), GroupNorm2d(group, fields))

    def forward(self, x: Tensor) -> Tensor:
        x = halve(x) if self.halves else x
        residual = x if self.shortcut is None else self.shortcut(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + residual)


class EquivariantResNet(Network):
    """Four stages of group blocks; each but the first halves the map and doubles the fields.

    A token is the maximum of every field over the orientations at one position; the image's vector is their mean.
    Tokens rotate with the image, the vector is invariant.
    """

    settings: EquivariantSettings

    def __init__(self, settings: EquivariantSettings):
        s, fields = settings, settings.width // ORDER[settings.group]
        kernel, stride = {"imagenet": (7, 2), "small": (3, 2), "cifar": (3, 1)}[s.stem]
        super().__init__(s, dim=8 * fields, stride_px=8 * stride * (2 if s.stem == "imagenet" else 1))
        self.group = s.group
        self.lift = GroupConv(s.group, s.channels, fields, kernel, stride=stride, lifts=True)
        self.bn = GroupNorm2d(s.group, fields)
        stages, inputs = [], fields
        for stage, count in enumerate(s.layers):
            outputs = fields * 2**stage
            first = GroupBlock(s.group, inputs, outputs, halves=stage > 0)
            stages.append(
                nn.Sequential(first, *(GroupBlock(s.group, outputs, outputs, halves=False) for _ in range(count - 1)))
            )
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, pixels: Float[Tensor, "B C Y X"]) -> Features:
        """The last map as tokens, its mean as the image's vector; ModelError when the pixels do not fit."""
        check_pixels(pixels, self.channels)
        if self.lift.stride == 2:
            pixels = make_odd(pixels)
        x = torch.relu(self.bn(self.lift(pixels.contiguous(memory_format=torch.channels_last))))
        if self.settings.stem == "imagenet":
            x = halve_by_maximum(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        invariant = over_orientations(x, self.group)
        tokens = invariant.flatten(2).transpose(1, 2)
        return Features(cls=tokens.mean(dim=1), tokens=tokens, grid=(invariant.shape[2], invariant.shape[3]))
