"""Views of volumes: places in millimetres, turns, aliasing, intensity, and that nothing depends on the batch."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from saccade.augment import cubes, scanner, volume_views
from saccade.augment.cubes import Cubes, Placing
from saccade.augment.settings import ViewsConfig, resolve_views
from saccade.augment.views import make_views, plain_view
from saccade.base.contracts import Batch, InputSpec
from saccade.errors import UsageError

SPEC = InputSpec(1, 16, 0.0, 1.0, (0.25,), (0.5,), axes=3)
PLAIN = {"jitter_prob": 0.0, "blur_prob": (0.0, 0.0, 0.0), "low_resolution_prob": 0.0}


def config(**changes) -> ViewsConfig:
    return resolve_views(
        dataclasses.replace(ViewsConfig(), **changes), size_px=16, channels=1, patch=4, local_count=2, axes=3
    )


def batch_of(*shapes, spacing=(1.0, 1.0, 1.0), seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    largest = [max(sides) for sides in zip(*shapes)]
    pixels = torch.full((len(shapes), 1, *largest), float("nan"))  # padding that is read would show
    for index, (z, y, x) in enumerate(shapes):
        pixels[index, :, :z, :y, :x] = torch.rand(1, z, y, x, generator=generator)
    return Batch(
        pixels, torch.tensor(shapes), torch.arange(len(shapes)) + 5, spacing_mm=torch.tensor([spacing] * len(shapes))
    )


def ramps(*shape) -> torch.Tensor:
    """[3 T Y X]: every voxel says where its middle is, in voxels from the corner."""
    axes = [torch.arange(n, dtype=torch.float32) + 0.5 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_a_voxel_is_where_the_cube_says(quarters, flips):
    """Every sample of a turned cube, read off ramps, lies where start + side x turn says; slices are thick."""
    spacing, side = torch.tensor([3.0, 1.0, 1.5]), 12
    u = torch.full((1, 7), 0.9)
    u[0, 3] = (quarters + 0.5) / 4
    u[0, :3] = torch.tensor([0.1 if flip else 0.9 for flip in flips])
    turn = cubes.draw_turns(u, Placing((1.0, 1.0), flips, True, 0.0))
    assert torch.linalg.det(turn)[0] == pytest.approx((-1.0) ** sum(flips))
    cube = Cubes(torch.tensor([[6.0, 5.0, 9.0]]), torch.tensor([12.0]), turn)
    found = cubes.sample_cubes(ramps(20, 40, 30), spacing, cube, side)[0]
    ticks = ramps(side, side, side) / side - 0.5
    wanted = 12.0 * torch.einsum("ab,bzyx->azyx", turn[0], ticks) + (cube.start[0] + 6.0)[:, None, None, None]
    torch.testing.assert_close(found, wanted / spacing[:, None, None, None], atol=1e-3, rtol=1e-4)


def test_a_free_rotation_is_rigid_in_millimetres():
    """A ball stays a ball although slices are thick: its extent is alike along all axes of the view."""
    spacing = torch.tensor([4.0, 1.0, 1.0])
    places = ramps(16, 64, 64) * spacing[:, None, None, None]
    ball = ((places - 32).square().sum(dim=0).sqrt() < 20).float()[None]
    u = torch.rand(6, 7, generator=torch.Generator().manual_seed(3))
    turn = cubes.draw_turns(u, Placing((1.0, 1.0), (True,) * 3, True, 180.0))
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(6, 3, 3), atol=1e-5, rtol=0)
    seen = cubes.sample_cubes(ball, spacing, Cubes(torch.zeros(6, 3), torch.full((6,), 64.0), turn), 32)
    middle = (torch.arange(32) - 15.5)[:, None, None]
    for one in seen[:, 0]:
        spread = [float((one.movedim(axis, 0) * middle**2).sum() / one.sum()) for axis in range(3)]
        assert max(spread) / min(spread) < 1.15  # slices of 4 mm are stairs


def test_shrinking_does_not_alias():
    """Stripes of one voxel become even grey along the axis that is shrunk, and only along that one."""
    stripes = (torch.arange(64) % 2).float()
    for axis in range(3):
        volume = stripes.view([64 if a == axis else 1 for a in range(3)]).expand(64, 64, 64)[None]
        found = cubes.sample_cubes(
            volume, torch.ones(3), cubes.full_cubes(torch.tensor([[64, 64, 64]]), torch.ones(1, 3), 0.0), 16
        )
        assert (found - 0.5).abs().max() < 1e-5
    thick = cubes.choose_levels(
        cubes.full_cubes(torch.tensor([[16, 64, 64]]), torch.tensor([[4.0, 1.0, 1.0]]), 0.0),
        torch.tensor([16, 64, 64]),
        torch.tensor([4.0, 1.0, 1.0]),
        16,
    )
    assert thick == [(0, 2, 2)]


def test_the_plain_view_is_all_of_the_volume():
    """Around the longest side, in millimetres; what lies outside is 0; --size-mm looks at the middle."""
    batch = batch_of((8, 32, 16), spacing=(2.0, 1.0, 1.0))
    batch.pixels[:] = 1.0
    seen = plain_view(batch, SPEC) * 0.5 + 0.25
    assert seen.shape == (1, 1, 16, 16, 16)
    inside = seen[0, 0] > 0.5
    assert inside.any(dim=2).any(dim=1).sum() == 8  # 16 of 32 mm
    assert inside.any(dim=2).any(dim=0).sum() == 16
    assert inside.any(dim=1).any(dim=0).sum() == 8
    near = plain_view(batch, dataclasses.replace(SPEC, size_mm=8.0)) * 0.5 + 0.25
    assert (near > 0.99).all()


def test_views_lie_where_their_boxes_say_and_never_read_padding():
    batch = batch_of((8, 20, 24), (12, 30, 16), spacing=(2.5, 1.0, 1.0))
    made = make_views(batch, config(), SPEC, seed=1, step=7)
    assert [view.role for view in made] == ["global"] * 2 + ["local"] * 2
    sizes = torch.tensor([[8, 20, 24], [12, 30, 16]])
    for view in made:
        assert view.pixels.isfinite().all()
        start, sides = view.box[:, :3], view.box[:, 3:]
        mm = sides * torch.tensor([2.5, 1.0, 1.0])
        torch.testing.assert_close(mm, mm[:, :1].expand(-1, 3))
        low, high = torch.minimum(torch.zeros(3), sizes - sides), torch.maximum(torch.zeros(3), sizes - sides)
        assert (start >= low - 1e-3).all() and (start <= high + 1e-3).all()
    assert made[0].pixels.shape == (2, 1, 16, 16, 16) and made[-1].pixels.shape == (2, 1, 8, 8, 8)


def test_views_do_not_depend_on_the_batch():
    batch = batch_of((8, 20, 24), (12, 30, 16), (10, 10, 10))
    one = Batch(batch.pixels[1:2], batch.sizes_px[1:2], batch.indices[1:2], spacing_mm=batch.spacing_mm[1:2])
    together, alone = (make_views(b, config(), SPEC, seed=1, step=7) for b in (batch, one))
    for many, single in zip(together, alone, strict=True):
        torch.testing.assert_close(many.pixels[1:2], single.pixels, atol=1e-6, rtol=0)
    again = make_views(batch, config(), SPEC, seed=1, step=8)
    assert not torch.equal(again[0].pixels, together[0].pixels)


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma", "bias_field", "noise"])
def test_every_strength_has_an_effect(name):
    batch = batch_of((16, 16, 16))
    still = dict.fromkeys(("brightness", "contrast", "gamma", "bias_field", "noise"), 0.0)
    quiet = PLAIN | still | {"jitter_prob": 1.0}
    (first, *_), (second, *_) = (
        make_views(batch, config(**values), SPEC, seed=0, step=0) for values in (quiet, quiet | {name: 0.3})
    )
    assert (first.pixels - second.pixels).abs().mean() > 1e-3


@pytest.mark.parametrize(
    "values",
    [{"blur_prob": (1.0, 1.0, 1.0), "blur_sigma": (9.0, 9.0)}, {"low_resolution_prob": 1.0}, {"hflip": False}]
    + [{"zflip": False}, {"vflip": False}, {"turn90": False}, {"rotate_degrees": 20.0}, {"global_scale": (0.2, 0.3)}],
)
def test_every_other_setting_has_an_effect(values):
    batch = batch_of(*[(16, 16, 16)] * 8)
    (first, *_), (second, *_) = (
        make_views(batch, config(**each), SPEC, seed=0, step=0) for each in (PLAIN, PLAIN | values)
    )
    assert not torch.allclose(first.pixels, second.pixels, atol=1e-3)


def test_blur_is_scipys():
    x = torch.rand(1, 14, 14, 14, generator=torch.Generator().manual_seed(0))
    wanted = ndimage.gaussian_filter(x[0].numpy(), 1.3, mode="nearest", radius=round(3 * 1.3))
    np.testing.assert_allclose(scanner.blur(x, 1.3)[0].numpy(), wanted, atol=1e-5)


def test_a_bias_field_is_smooth_and_low_resolution_keeps_the_mean():
    x = torch.ones(2, 1, 12, 12, 12)
    field = scanner.bias(x, torch.tensor([[0.0] * 9, [0.3] * 9]))
    assert torch.equal(field[0], x[0])
    steps = field[1].log().diff(dim=-1).abs()
    assert 0.01 < steps.max() < 0.25
    noisy = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    coarse = scanner.lose_resolution(noisy, 2.0)
    assert coarse.shape == noisy.shape and coarse.mean() == pytest.approx(float(noisy.mean()), abs=0.01)
    assert coarse.std() < 0.5 * noisy.std()


@pytest.mark.parametrize(
    ("name", "value"),
    [("hue", 0.1), ("stain", 0.2), ("solarise_prob", 0.2), ("aspect", (0.5, 2.0)), ("grey_prob", 0.1)],
)
def test_settings_of_images_are_refused_for_volumes(name, value):
    with pytest.raises(UsageError, match=f"{name} has no effect on volumes"):
        config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("noise", 0.1), ("gamma", 0.1), ("zflip", True), ("bias_field", 0.2)])
def test_settings_of_volumes_are_refused_for_images(name, value):
    with pytest.raises(UsageError, match=f"{name} has no effect on images"):
        resolve_views(ViewsConfig(**{name: value}), size_px=16, channels=1, patch=4, local_count=0)


def test_spacing_that_is_unknown_makes_cubes_of_voxels():
    batch = dataclasses.replace(batch_of((8, 8, 8)), spacing_mm=None)
    assert torch.equal(volume_views.spacing_of(batch), torch.ones(1, 3))
    assert plain_view(batch, SPEC).shape == (1, 1, 16, 16, 16)
