"""Residual networks (He et al. 2016, arXiv:1512.03385), named and laid out as in torchvision and timm.

The bottleneck has its stride in the 3x3 convolution, as both libraries do. Two more stems for small tiles,
where a 7x7 convolution and a pool would leave one position. For volumes every kernel has a third axis.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.base.contracts import Features
from saccade.models.backbones.resnet import ResNetSettings
from saccade.models.nn.network import Network
from saccade.models.nn.patch_embed import BATCH_NORMS, CHANNELS_LAST, CONVOLUTIONS, check_pixels

MAX_POOLS: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def _conv(inputs: int, outputs: int, kernel: int, axes: int, stride: int = 1) -> nn.Module:
    return CONVOLUTIONS[axes](inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, axes: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    # The blocks take every stride-th pixel beforehand: the same figures as a 1x1 convolution with that stride, whose
    # backward pass crashes torch 2.15 on the CPU (channels last, 8 channels, maps from 64 x 64).
    return nn.Sequential(_conv(inputs, outputs, 1, axes), BATCH_NORMS[axes](outputs))


def _every(stride: int, axes: int) -> tuple[slice, ...]:
    """Every ``stride``-th pixel along each axis."""
    return (slice(None), slice(None), *(slice(None, None, stride),) * axes)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, axes: int, stride: int):
        super().__init__()
        norm = BATCH_NORMS[axes]
        self.conv1, self.bn1 = _conv(inputs, width, 3, axes, stride), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, axes), norm(width)
        self.downsample, self.strided = _shortcut(inputs, width, axes, stride), _every(stride, axes)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x[self.strided])
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + residual)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, axes: int, stride: int):
        super().__init__()
        norm = BATCH_NORMS[axes]
        self.conv1, self.bn1 = _conv(inputs, width, 1, axes), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, axes, stride), norm(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1, axes), norm(4 * width)
        self.downsample, self.strided = _shortcut(inputs, 4 * width, axes, stride), _every(stride, axes)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x[self.strided])
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + residual)


class ResNet(Network):
    """Four stages of residual blocks; each but the first halves the map and doubles the channels."""

    settings: ResNetSettings

    def __init__(self, settings: ResNetSettings):
        s = settings
        kernel, stride = {"imagenet": (7, 2), "small": (3, 2), "cifar": (3, 1)}[s.stem]
        pooled = s.stem == "imagenet"
        block, grow = (Bottleneck, 4) if s.bottleneck else (BasicBlock, 1)
        super().__init__(s, dim=8 * s.width * grow, stride_px=8 * stride * (2 if pooled else 1))
        self.conv1, self.bn1 = _conv(s.channels, s.width, kernel, s.axes, stride), BATCH_NORMS[s.axes](s.width)
        self.maxpool = MAX_POOLS[s.axes](3, stride=2, padding=1) if pooled else nn.Identity()
        stages, inputs = [], s.width
        for stage, count in enumerate(s.layers):
            width = s.width * 2**stage
            first = block(inputs, width, s.axes, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(block(width * grow, width, s.axes, 1) for _ in range(count - 1))))
            inputs = width * grow
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Float[Tensor, "B C *size"]) -> Features:
        """The last map as tokens, its mean as the image's vector; ModelError when the pixels do not fit."""
        check_pixels(pixels, self.channels, self.settings.axes)
        # Channels last: a training step of a narrow network took 0.6 of the time on two cores in bf16.
        x = torch.relu(self.bn1(self.conv1(pixels.contiguous(memory_format=CHANNELS_LAST[self.settings.axes]))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        tokens = x.flatten(2).transpose(1, 2)
        return Features(cls=tokens.mean(dim=1), tokens=tokens, grid=tuple(x.shape[2:]))
