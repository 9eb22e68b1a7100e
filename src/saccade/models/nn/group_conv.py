"""Group-equivariant convolutions: over rotated and flipped copies of one kernel.

Cohen and Welling 2016 (arXiv:1602.07576) for c4 (rotations by 90 degrees) and d4 (with flips), where rotated kernels
are permutations of their weights and equivariance is exact; Bekkers et al. 2018 (arXiv:1804.03393) and Lafarge et al.
2021 (arXiv:2002.08725) for c8, eight rotations in histopathology, where kernels rotated by 45 degrees are interpolated
and the corners outside the disc are masked. Within c8, rotations by 90 degrees stay exact.

A map over a group of G elements is [B G*F Y X]: for each orientation all F fields, so that in channels-last memory it
is a plain map [B F Y X*G], which ordinary batch normalisation takes with one mean and variance a field. A kernel is
expanded to an ordinary one by a single matrix product, and convolved once.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from saccade.models.settings import ORDER, Group

Matrix = tuple[tuple[float, float], tuple[float, float]]
MOMENTUM = 0.1  # of the running statistics, as in torch


@cache
def elements(group: Group) -> tuple[Matrix, ...]:
    """The 2 x 2 matrices of a group, the identity first: rotations, then (d4) rotations after a flip of the columns.

    Examples
    --------
    >>> len(elements("d4")), elements("c4")[0]
    (8, ((1.0, -0.0), (0.0, 1.0)))
    """
    count = 8 if group == "c8" else 4
    matrices = []
    for k in range(count):
        c, s = (math.cos(2 * math.pi * k / count), math.sin(2 * math.pi * k / count))
        matrices.append(((c, -s), (s, c)))
    if group == "d4":
        matrices += [((a, -b), (c, -d)) for (a, b), (c, d) in matrices]
    return tuple(matrices)


@cache
def quotients(group: Group) -> tuple[tuple[int, ...], ...]:
    """Entry [g][h]: the number of the element g^-1 h."""
    matrices = torch.tensor(elements(group), dtype=torch.float64)
    products = torch.einsum("gji,hjk->ghik", matrices, matrices)  # orthogonal: the inverse is the transpose
    distance = (products[:, :, None] - matrices).abs().amax(dim=(-1, -2))
    return tuple(tuple(int(n) for n in row) for row in distance.argmin(dim=-1))


@cache
def kernel_turns(group: Group, size: int) -> Float[Tensor, "G P Q"]:
    """How each element transforms a kernel of ``size`` x ``size``: [g] @ (flattened weights) gives the rotated weights.

    ``size`` is odd. Weights farther from the middle than half the size (the corners of kernels from 5 x 5 on) are
    masked for c8, so that no rotation reaches outside. Interpolation reduces the norm of a kernel; kernels rotated by
    45 degrees are scaled so that random weights keep theirs: shared batch normalisation would propagate the loss
    (random weights, rotated by 45 degrees: the image vector moved 0.21 instead of 0.45 of the distance to another
    image).
    """
    reach = (size - 1) / 2
    line = torch.arange(size, dtype=torch.float64) - reach
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    disc = (places.norm(dim=1) <= size / 2).double()
    turned = []
    for number, matrix in enumerate(elements(group)):
        # Odd multiples of 45 degrees are multiples of 90 degrees after the first: these stay exact.
        half = group == "c8" and number % 2 == 1
        back = elements(group)[number - 1] if half else matrix
        moved = places @ torch.tensor(back, dtype=torch.float64)  # rows times M are M^-1 times the position
        exact = _bilinear(moved, places)
        if half:
            exact = exact @ _bilinear(places @ torch.tensor(elements("c8")[1], dtype=torch.float64), places)
        exact = disc[:, None] * exact * disc if group == "c8" else exact
        turned.append(exact * (disc.sum() / exact.square().sum()).sqrt() if half else exact)
    return torch.stack(turned).float()


def _bilinear(targets: Tensor, places: Tensor) -> Tensor:
    """[P Q]: weight of each grid position in the bilinear interpolation at each target; zero outside."""
    apart = (targets[:, None] - places[None]).abs()
    weights = (1 - apart).clamp_min(0).prod(dim=-1)
    return torch.where(weights < 1e-9, torch.zeros_like(weights), weights)


@cache
def lifting_matrix(group: Group, size: int) -> Float[Tensor, "Q GP"]:
    """Flattened weights of one kernel times this matrix are its copies under every element."""
    turns = kernel_turns(group, size)
    return turns.permute(2, 0, 1).flatten(1).contiguous()


@cache
def group_matrix(group: Group, size: int) -> Float[Tensor, "HQ GKP"]:
    """Weights [H Q] of one group kernel times this matrix are its copies [G, H, P] under every element."""
    turns, order = kernel_turns(group, size), ORDER[group]
    expanded = torch.zeros(order, size**2, order, order, size**2)
    for g, row in enumerate(quotients(group)):
        for h, quotient in enumerate(row):
            expanded[quotient, :, g, h] = turns[g].T
    return expanded.flatten(2).flatten(0, 1)


class GroupConv(nn.Module):
    """A convolution from a map over the group, or (``lifts``) from an image, to a map over the group.

    Weights [F_out F_in G k k], or [F_out C k k]. The stride is that of an ordinary convolution; rotations by 90
    degrees stay exact on maps of odd size only (see ``halve``).
    """

    matrix: Tensor

    def __init__(self, group: Group, inputs: int, outputs: int, kernel: int, *, stride: int = 1, lifts: bool = False):
        super().__init__()
        self.group, self.kernel, self.stride, self.lifts = group, kernel, stride, lifts
        self.order = ORDER[group]
        channels = (outputs, inputs) if lifts else (outputs, inputs, self.order)
        self.weight = nn.Parameter(torch.empty(*channels, kernel, kernel))
        matrix = lifting_matrix(group, kernel) if lifts else group_matrix(group, kernel)
        self.register_buffer("matrix", matrix, persistent=False)
        # He et al. 2015 for the convolution that is computed: its fan-out counts every orientation.
        nn.init.normal_(self.weight, std=math.sqrt(2 / (outputs * self.order * kernel**2)))

    def expanded(self) -> Float[Tensor, "O I k k"]:
        """The ordinary kernel: orientations of fields by orientations of fields (or by channels)."""
        outputs, inputs = self.weight.shape[:2]
        k = self.kernel
        copies = self.weight.flatten(2) @ self.matrix
        if self.lifts:
            kernel = copies.view(outputs, inputs, self.order, k, k).permute(2, 0, 1, 3, 4)
            return kernel.reshape(self.order * outputs, inputs, k, k)
        kernel = copies.view(outputs, inputs, self.order, self.order, k, k).permute(2, 0, 3, 1, 4, 5)
        return kernel.reshape(self.order * outputs, self.order * inputs, k, k)

    def forward(self, x: Float[Tensor, "B I Y X"]) -> Float[Tensor, "B O y x"]:
        return F.conv2d(x, self.expanded(), stride=self.stride, padding=self.kernel // 2)


def _scaled(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch normalisation [B GF Y X] with given statistics, of each field [F] or of each channel [GF]."""
    order = x.shape[1] // len(mean)
    mean, variance, weight, bias = (t.repeat(order) for t in (mean, variance, weight, bias))
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)


class _PooledNorm(torch.autograd.Function):
    """Batch normalisation over all orientations of a field, with kernels that see every orientation as a channel.

    Returns the map, and mean and variance of each field. The gradient is the one of fixed statistics, less what the
    statistics themselves pass back: a multiple of the map and a constant, the same for all orientations of a field.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, order: int, eps: float) -> tuple[Tensor, ...]:
        unused = weight.new_zeros(2, x.shape[1])
        means, variances = (t.view(order, -1) for t in torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        ctx.save_for_backward(x, mean.repeat(order), variance.repeat(order), weight.repeat(order))
        ctx.order, ctx.eps = order, eps
        ctx.mark_non_differentiable(mean, variance)
        return _scaled(x, mean, variance, weight, bias, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight = ctx.saved_tensors
        fixed = (weight, mean, variance, mean, variance, False, ctx.eps, [True, True, True])
        to_input, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad.contiguous(memory_format=torch.channels_last), x, *fixed
        )
        to_weight, to_bias = (t.view(ctx.order, -1).sum(dim=0) for t in (to_weight, to_bias))
        scale, inverse_count = (variance + ctx.eps).rsqrt(), x.shape[1] / (x.numel() * ctx.order)
        slope = -weight * scale.square() * to_weight.repeat(ctx.order) * inverse_count
        constant = -weight * scale * to_bias.repeat(ctx.order) * inverse_count - slope * mean
        # As batch normalisation, because torch's products with a vector of channels are several times slower.
        to_input += _scaled(x, torch.zeros_like(mean), torch.full_like(mean, 1 - ctx.eps), slope, constant, ctx.eps)
        return to_input, to_weight, to_bias, None, None


class GroupNorm2d(nn.Module):
    """Batch normalisation with one mean, variance, factor and offset for all orientations of a field."""

    def __init__(self, group: Group, fields: int):
        super().__init__()
        self.order, self.norm = ORDER[group], nn.BatchNorm2d(fields, momentum=MOMENTUM)

    def forward(self, x: Float[Tensor, "B GF Y X"]) -> Float[Tensor, "B GF Y X"]:
        norm = self.norm
        if not self.training:
            assert norm.running_mean is not None and norm.running_var is not None
            return _scaled(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        # On the CPU torch takes 16 channels at once, and fewer one by one: 3 times the time, half of a whole step.
        if x.device.type == "cpu" and norm.num_features < 16:
            return self._pooled(x)
        batch, channels, rows, columns = x.shape
        flat = x.permute(0, 2, 3, 1).reshape(batch, rows, columns * self.order, channels // self.order)
        flat = norm(flat.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return flat.reshape(batch, rows, columns, channels).permute(0, 3, 1, 2)

    def _pooled(self, x: Float[Tensor, "B GF Y X"]) -> Float[Tensor, "B GF Y X"]:
        norm, count = self.norm, x.numel() // self.norm.num_features
        normalised, mean, variance = _PooledNorm.apply(x, norm.weight, norm.bias, self.order, norm.eps)
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean, MOMENTUM)
            norm.running_var.lerp_(variance * (count / (count - 1)), MOMENTUM)
        return normalised


def halve(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
    """The map at half its size, by means, equivariant to rotations by 90 degrees.

    A stride of 2 takes every second position from the first on. On an even side these are off the centre, so a rotated
    map gives other positions. Even sides take means of pairs, odd ones means of three around every second position.
    """
    even = [length % 2 == 0 for length in x.shape[-2:]]
    if all(even):
        return F.avg_pool2d(x, 2)
    kernel, padding = [2 if e else 3 for e in even], [0 if e else 1 for e in even]
    return F.avg_pool2d(x, kernel, stride=2, padding=padding, count_include_pad=False)


def halve_by_maximum(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
    """As ``halve``, by maxima."""
    even = [length % 2 == 0 for length in x.shape[-2:]]
    return F.max_pool2d(x, [2 if e else 3 for e in even], stride=2, padding=[0 if e else 1 for e in even])


def make_odd(x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B C y x"]:
    """Make even sides odd by means of neighbours: a stride of 2 is then equivariant to rotations by 90 degrees."""
    kernel = [2 if length % 2 == 0 else 1 for length in x.shape[-2:]]
    return x if kernel == [1, 1] else F.avg_pool2d(x, kernel, stride=1)


def over_orientations(x: Float[Tensor, "B GF Y X"], group: Group) -> Float[Tensor, "B F Y X"]:
    """The maximum of each field over its orientations, which is invariant to rotations of the image."""
    return x.unflatten(1, (ORDER[group], -1)).amax(dim=1)
