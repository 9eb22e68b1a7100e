"""Group convolutions against turned kernels one by one, and equivariance of whole networks at any size."""

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.errors import ModelError, UsageError
from saccade.models.backbones.build import build, count_parameters
from saccade.models.nn.group_conv import (
    GroupConv,
    GroupNorm2d,
    elements,
    halve,
    halve_by_maximum,
    kernel_turns,
    make_odd,
    quotients,
)
from saccade.models.settings import ORDER

GROUPS = ("c4", "d4", "c8")


def turned(kernel, group, g):
    """A kernel [... k k] as element g shows it; exact turns only."""
    if group == "c8":
        assert g % 2 == 0
        return torch.rot90(kernel, g // 2, dims=(-2, -1))
    flipped = kernel.flip(-1) if g >= 4 else kernel
    return torch.rot90(flipped, g % 4, dims=(-2, -1))


@pytest.mark.parametrize("group", GROUPS)
def test_elements_form_a_group(group):
    matrices = torch.tensor(elements(group), dtype=torch.float64)
    table = torch.tensor(quotients(group))
    assert len(matrices) == ORDER[group] and torch.equal(table[0], torch.arange(ORDER[group]))
    for g in range(ORDER[group]):
        assert sorted(table[g].tolist()) == list(range(ORDER[group])) and table[g, g] == 0
        for h in range(ORDER[group]):
            torch.testing.assert_close(matrices[g] @ matrices[table[g, h]], matrices[h])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_turned_kernels_are_turned(group, size):
    kernel = torch.randn(size, size)
    if group == "c8":  # what lies outside the disc is masked
        line = torch.arange(size) - (size - 1) / 2
        kernel = kernel * ((line[:, None] ** 2 + line**2) <= (size / 2) ** 2)
    moved = (kernel_turns(group, size) @ kernel.flatten()).view(-1, size, size)
    exact = range(0, ORDER[group], 2) if group == "c8" else range(ORDER[group])
    for g in exact:
        torch.testing.assert_close(moved[g], turned(kernel, group, g), atol=1e-6, rtol=0)
    if group == "c8":  # an eighth more is a quarter turn of the first eighth
        for quarter in range(4):
            torch.testing.assert_close(moved[2 * quarter + 1], torch.rot90(moved[1], quarter), atol=1e-6, rtol=0)
        strength = kernel_turns(group, size).square().sum(dim=(1, 2))
        torch.testing.assert_close(strength, strength[:1].expand(8))


@pytest.mark.parametrize("group", ["c4", "d4"])
def test_expansion_is_one_turned_kernel_after_the_other(group):
    """Equation 11 of Cohen and Welling 2016, written out: out[g] correlates with kernel[g^-1 h] turned by g."""
    order = ORDER[group]
    torch.manual_seed(0)
    lift, conv = GroupConv(group, 3, 4, 3, lifts=True), GroupConv(group, 4, 5, 3)
    x = torch.randn(2, 3, 9, 9)
    slow = torch.cat([F.conv2d(x, turned(lift.weight, group, g), padding=1) for g in range(order)], dim=1)
    torch.testing.assert_close(lift(x), slow, atol=1e-5, rtol=1e-5)
    y = torch.randn(2, order * 4, 9, 9)
    parts = []
    for g in range(order):
        total = 0
        for h in range(order):
            kernel = turned(conv.weight[:, :, quotients(group)[g][h]], group, g)
            total = total + F.conv2d(y[:, 4 * h : 4 * h + 4], kernel, padding=1)
        parts.append(total)
    torch.testing.assert_close(conv(y), torch.cat(parts, dim=1), atol=1e-4, rtol=1e-4)
    weights = torch.randn(2, order * 5, 9, 9)
    fast = torch.autograd.grad((conv(y) * weights).sum(), conv.weight)[0]
    slow_gradient = torch.autograd.grad((torch.cat(parts, dim=1) * weights).sum(), conv.weight)[0]
    torch.testing.assert_close(fast, slow_gradient, atol=1e-3, rtol=1e-4)


def test_group_norm_shares_its_statistics_over_orientations():
    norm = GroupNorm2d("c4", 3)
    x = torch.randn(5, 12, 4, 6) * 3 + 1
    found = norm(x).view(5, 4, 3, 4, 6)
    torch.testing.assert_close(found.mean(dim=(0, 1, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(dim=(0, 1, 3, 4), correction=0), torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fields", [3, 16])
def test_group_norm_is_batch_norm_of_all_orientations_side_by_side(fields, layout):
    """Values, gradients, running statistics and evaluation; few fields take another path than many."""
    ours, torchs = GroupNorm2d("c4", fields).double(), torch.nn.BatchNorm2d(fields).double()
    with torch.no_grad():
        ours.norm.weight.uniform_(0.5, 2)
        ours.norm.bias.normal_()
    torchs.load_state_dict(ours.norm.state_dict())
    pull = torch.randn(5, 4 * fields, 4, 6, dtype=torch.float64)
    for training in (True, True, False):
        x = (torch.randn(5, 4 * fields, 4, 6, dtype=torch.float64) * 3 + 1).to(memory_format=layout).requires_grad_()
        y = x.detach().clone().requires_grad_()
        found = ours.train(training)(x)
        expected = torchs.train(training)(y.reshape(20, fields, 4, 6)).reshape(found.shape)
        torch.testing.assert_close(found, expected)
        for net, out in ((ours, found), (torchs, expected)):
            net.zero_grad()
            (out * pull).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        for one, other in zip(ours.buffers(), torchs.buffers(), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (8, 9), (1, 2)])
@pytest.mark.parametrize("function", [halve, halve_by_maximum])
def test_halving_commutes_with_quarter_turns(function, shape):
    x = torch.randn(1, 2, *shape)
    assert function(x).shape[-2:] == tuple(math.ceil(n / 2) for n in shape)
    torch.testing.assert_close(function(torch.rot90(x, 1, (2, 3))), torch.rot90(function(x), 1, (2, 3)))


def test_a_stride_is_exact_on_odd_maps_only():
    """The trap that ``halve`` and ``make_odd`` are for."""
    conv = GroupConv("c4", 1, 2, 3, stride=2, lifts=True)

    def moves(x):
        one, other = conv(x), conv(torch.rot90(x, 1, (2, 3)))
        shifted = torch.rot90(one, 1, (2, 3)).view(1, 4, 2, *one.shape[-2:]).roll(1, dims=1).flatten(1, 2)
        return float((shifted - other).detach().abs().max())

    x = torch.randn(1, 1, 8, 8)
    assert moves(x) > 0.01 and moves(make_odd(x)) < 1e-5
    assert make_odd(x).shape == (1, 1, 7, 7) and make_odd(make_odd(x)).shape == (1, 1, 7, 7)


def shaken(name, size):
    """A network whose running statistics are not those of its start."""
    net = build(name, size_px=size)
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(4, 3, size, size) * 2 + 1)
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return net


def plane(features):
    return features.tokens.transpose(1, 2).unflatten(2, features.grid)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", [32, 33, 64, 65, 96])  # all three stems, even and odd
def test_a_turned_image_gives_turned_tokens_and_the_same_vector(group, size):
    torch.manual_seed(0)
    net, x = shaken(f"resnet10_{group}_w16", size), torch.randn(2, 3, size, size)
    for training in (False, True):
        net.train(training)
        with torch.no_grad():
            one = net(x)
            pairs = [(torch.rot90(x, k, (2, 3)), torch.rot90(plane(one), k, (2, 3))) for k in (1, 2, 3)]
            if group == "d4":
                pairs.append((x.flip(3), plane(one).flip(3)))
            for image, expected in pairs:
                other = net(image)
                assert float((plane(other) - expected).norm() / expected.norm()) < 1e-5
                assert float((other.cls - one.cls).norm() / one.cls.norm()) < 1e-5


def test_a_plain_network_does_change():
    net, x = shaken("resnet10_w16", 64).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert float((net(torch.rot90(x, 1, (2, 3))).cls - net(x).cls).norm() / net(x).cls.norm()) > 1e-2


def test_one_weight_serves_every_orientation():
    plain, turns = build("resnet18_w32", size_px=64), build("resnet18_c4_w32", size_px=64)
    convolutions = [sum(p.numel() for p in net.parameters() if p.ndim > 1) for net in (plain, turns)]
    assert convolutions[0] == 4 * convolutions[1]
    assert turns.dim == 8 * 32 // 4 and turns.stride_px == plain.stride_px
    assert count_parameters(build("resnet18_d4_w32", size_px=64)) < count_parameters(turns)
    both = [net.eval()(torch.randn(1, 3, 64, 64)).grid for net in (plain, turns)]
    assert both[0] == both[1]


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_said():
    with pytest.raises(UsageError, match="must be divisible by its number of orientations"):
        build("resnet18_c8_w20")
    with pytest.raises(UsageError, match="unknown backbone"):
        build("resnet50_c4")
    with pytest.raises(ModelError, match="do not fit the network"):
        build("resnet10_c4_w8")(torch.randn(1, 1, 32, 32))


@pytest.mark.parametrize("group", ["c4", "d4"])
def test_kernels_are_those_of_escnn(group):
    """The oracle (Weiler and Cesa 2019): from its kernel of the first orientation ours gives all of its others."""
    escnn = pytest.importorskip("escnn", exc_type=ImportError)
    space = escnn.gspaces.flipRot2dOnR2(4) if group == "d4" else escnn.gspaces.rot2dOnR2(4)
    order = ORDER[group]
    image = escnn.nn.FieldType(space, [space.trivial_repr] * 2)
    three, two = (escnn.nn.FieldType(space, [space.regular_repr] * n) for n in (3, 2))
    lifted = escnn.nn.R2Conv(image, three, 3, padding=1, bias=False).expand_parameters()[0].view(3, order, 2, 3, 3)
    grouped = escnn.nn.R2Conv(three, two, 3, padding=1, bias=False).expand_parameters()[0]
    grouped = grouped.view(2, order, 3, order, 3, 3)
    lift, conv = GroupConv(group, 2, 3, 3, lifts=True), GroupConv(group, 3, 2, 3)
    with torch.no_grad():
        lift.weight.copy_(lifted[:, 0])
        conv.weight.copy_(grouped[:, 0])
        ours = lift.expanded().view(order, 3, 2, 3, 3)
        torch.testing.assert_close(ours, lifted.transpose(0, 1), atol=1e-6, rtol=0)
        ours = conv.expanded().view(order, 2, order, 3, 3, 3)
        torch.testing.assert_close(ours, grouped.permute(1, 0, 3, 2, 4, 5), atol=1e-6, rtol=0)
