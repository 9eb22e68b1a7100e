"""Crops against torchvision's, exact identities, and what must never happen (padding, batch). Colour: own file."""

import dataclasses

import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as TF

from saccade.augment import color, geometry, views
from saccade.augment.settings import ViewsConfig, resolve_views
from saccade.augment.views import make_views, plain_view
from saccade.base.contracts import Batch, InputSpec

SPEC = InputSpec(channels=3, size_px=32, offset=0, scale=255, mean=(0.0,) * 3, std=(1.0,) * 3)
PLAIN = resolve_views(
    ViewsConfig(
        global_count=1,
        local_count=0,
        global_px=32,
        local_px=16,
        global_scale=(1.0, 1.0),
        aspect=(1.0, 1.0),
        hflip=False,
        vflip=False,
        turn90=False,
        jitter_prob=0.0,
        saturation=0.0,
        hue=0.0,
        grey_prob=0.0,
        stain=0.0,
        blur_prob=(0.0, 0.0, 0.0),
    ),
    size_px=32,
    channels=3,
    patch=8,
    local_count=0,
)


def smooth(images: int, rows: int, columns: int, grain_px: int = 6) -> torch.Tensor:
    """Images like photographs: most of the power in the low frequencies."""
    shape = (images, 3, rows // grain_px + 2, columns // grain_px + 2)
    coarse = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(rows, columns), mode="bicubic").clamp(0, 1)


def noise(images: int, rows: int, columns: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(images, channels, rows, columns, generator=torch.Generator().manual_seed(1))


def batch_of(pixels: torch.Tensor, sizes: list[tuple[int, int]] | None = None) -> Batch:
    sizes = sizes or [tuple(pixels.shape[-2:])] * len(pixels)
    return Batch(pixels, torch.tensor(sizes), torch.arange(len(pixels)))


def resolved(**changes) -> ViewsConfig:
    config = dataclasses.replace(ViewsConfig(local_count=2), **changes)
    return resolve_views(config, size_px=32, channels=3, patch=8, local_count=4)


def crops_of(boxes: list[tuple[float, float, float, float]], turn: torch.Tensor | None = None) -> geometry.Crops:
    top, left, height, width = torch.tensor(boxes).float().unbind(1)
    turn = torch.eye(2).expand(len(boxes), 2, 2) if turn is None else turn
    return geometry.Crops(top, left, height, width, turn)


def sampled(pixels: torch.Tensor, crops: geometry.Crops, size_px: int) -> torch.Tensor:
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    levels = geometry.choose_levels(crops, sizes, size_px)
    return sampled_from(pixels, sizes, crops, levels, size_px)


def sampled_from(pixels, sizes, crops, levels, size_px: int) -> torch.Tensor:
    rows, columns = pixels.shape[2:]
    atlas = geometry.Atlas((rows, columns), int(levels.max()) + 1)
    places = geometry.find_places(atlas, sizes, crops, levels, size_px, torch.device("cpu"))
    return geometry.sample(geometry.build_atlas(pixels, atlas), places)


# --- geometry ----------------------------------------------------------------------------------


def test_nothing_asked_for_gives_the_image_itself():
    pixels = noise(4, 32, 32)
    (view,) = make_views(batch_of(pixels), PLAIN, SPEC, seed=0, step=0)
    torch.testing.assert_close(view.pixels, pixels, atol=2e-5, rtol=0)
    assert view.role == "global" and view.box.tolist() == [[0, 0, 32, 32]] * 4


def test_normalised_as_the_spec_says():
    pixels = noise(2, 32, 32)
    spec = dataclasses.replace(SPEC, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4))
    (view,) = make_views(batch_of(pixels), PLAIN, spec, seed=0, step=0)
    torch.testing.assert_close(view.pixels, TF.normalize(pixels, spec.mean, spec.std), atol=2e-4, rtol=0)
    torch.testing.assert_close(plain_view(batch_of(pixels), spec), TF.normalize(pixels, spec.mean, spec.std))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("flips", [(), (-1,), (-2,), (-1, -2)])
def test_turns_and_flips_are_exact(quarters, flips):
    """The numbers that ask for a turn and flips, and torch's own rot90 and flip."""
    pixels = noise(1, 32, 32)
    what = geometry.Geometry((1.0, 1.0), (1.0, 1.0), hflip=True, vflip=True, turn90=True, rotate_degrees=0.0)
    u = torch.tensor([[quarters / 4 + 0.1, 0.5, 0.0 if -1 in flips else 0.9, 0.0 if -2 in flips else 0.9]])
    found = sampled(pixels, crops_of([(0, 0, 32, 32)], geometry.draw_turns(u, what)), 32)
    expected = torch.flip(torch.rot90(pixels, quarters, dims=(2, 3)), dims=flips)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_free_rotation_equals_torchvision():
    pixels = smooth(1, 65, 65)
    what = geometry.Geometry((1.0, 1.0), (1.0, 1.0), False, False, False, rotate_degrees=30.0)
    u = torch.tensor([[0.0, 0.9, 0.0, 0.0]])  # 0.9 of -30..30 is 24 degrees
    found = sampled(pixels, crops_of([(0, 0, 65, 65)], geometry.draw_turns(u, what)), 65)
    expected = TF.rotate(pixels, 24, interpolation=TF.InterpolationMode.BILINEAR)
    inside = slice(14, 51)  # the corners of torchvision's result are black
    torch.testing.assert_close(found[..., inside, inside], expected[..., inside, inside], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("box", "size_px", "mean_error"),
    [
        ((3, 7, 40, 48), 64, 1e-6),  # enlarged
        ((10, 20, 64, 64), 64, 1e-6),  # neither
        ((0, 0, 90, 90), 64, 0.001),  # shrunk by 1.4, from the image itself
        ((0, 0, 96, 96), 64, 0.002),  # by 1.5, from the halved copy
        ((5, 3, 120, 110), 32, 0.006),  # by 3.6
        ((0, 0, 128, 128), 16, 0.015),  # by 8: averages over squares here, triangles there
    ],
)
def test_crop_and_resize_equal_torchvision(box, size_px, mean_error):
    pixels = smooth(3, 130, 128, grain_px=20)
    found = sampled(pixels, crops_of([box] * 3), size_px)
    expected = TF.resized_crop(pixels, *box, size=[size_px, size_px], antialias=True)
    inside = slice(1, -1)  # a crop here sees its neighbours beyond the edge, torchvision cuts first
    error = (found - expected)[..., inside, inside]
    assert error.abs().mean() < mean_error
    assert error.abs().max() < 10 * mean_error
    assert error.mean().abs() < 0.1 * mean_error  # no shift, no change of brightness


@pytest.mark.parametrize("shrink", [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0])
def test_shrinking_does_not_alias(shrink):
    """White noise loses its power as the square of the shrink factor; plain bilinear sampling keeps 44 % of it."""
    side = round(24 * shrink)
    found = sampled(noise(8, side, side), crops_of([(0, 0, side, side)] * 8), 24)
    kept = (found.var() * 12 * shrink**2).item()
    assert 0.25 < kept < 1.6


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        ((0.4, 1.0), (96, 96)),
        ((0.1, 0.4), (96, 96)),
        ((0.5, 1.0), (60, 140)),
        ((0.9, 1.0), (40, 160)),
        ((0.9, 1.0), (160, 40)),
    ],
)
def test_crops_are_distributed_as_torchvision_draws_them(scale, size):
    count, ratio = 20000, (0.75, 1.3333)
    what = geometry.Geometry(scale, ratio, False, False, False, 0.0)
    u = torch.rand(count, geometry.DRAWS, generator=torch.Generator().manual_seed(3))
    ours = geometry.draw_crops(u, torch.tensor([size]).expand(count, 2), what).boxes()
    torch.manual_seed(4)
    transform = v2.RandomResizedCrop(32, scale=scale, ratio=ratio)
    image = [torch.empty(3, *size)]
    drawn = [transform.make_params(image) for _ in range(4000)]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).float()
    columns = [(ours[:, k], theirs[:, k], 0.01 * max(size)) for k in range(4)]
    if max(size) == 160:  # nothing fits: torchvision takes the centre, here it may lie anywhere
        along = ours[:, size.index(160)]
        assert along.min() < 1 and along.max() > 160 - 53.4 - 1
    if max(size) > 96:
        columns = columns[2:]
    area = [(b[:, 2] * b[:, 3], 0.01 * size[0] * size[1]) for b in (ours, theirs)]
    aspect = [((b[:, 3] / b[:, 2]).log(), 0.5 / min(size)) for b in (ours, theirs)]
    columns += [(one[0], other[0], one[1]) for one, other in (area, aspect)]
    for one, other, rounding in columns:
        # Four standard errors of 4,000 draws, and torchvision's rounding to whole pixels.
        error = 4 * other.std() / 4000**0.5 + rounding
        assert abs(one.mean() - other.mean()) < error
        assert abs(one.std() - other.std()) < error


def test_crops_stay_inside_their_image():
    sizes = torch.randint(8, 200, (5000, 2), generator=torch.Generator().manual_seed(0))
    what = geometry.Geometry((0.05, 1.0), (0.5, 2.0), True, True, True, 0.0)
    u = torch.rand(5000, geometry.DRAWS, generator=torch.Generator().manual_seed(1))
    top, left, height, width = geometry.draw_crops(u, sizes, what).boxes().unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= sizes[:, 0] + 1e-3).all() and (left + width <= sizes[:, 1] + 1e-3).all()


@pytest.mark.parametrize("rotate_degrees", [0.0, 45.0])
@pytest.mark.parametrize("size", [(30, 41), (33, 50), (131, 67), (144, 9), (3, 144)])
def test_padding_is_never_read(size, rotate_degrees):
    """Zero times NaN is NaN: even a weight of nothing would show."""
    pixels = noise(64, 144, 144)
    pixels[:, :, size[0] :] = float("nan")
    pixels[:, :, :, size[1] :] = float("nan")
    batch = batch_of(pixels, [size] * 64)
    for view in make_views(batch, resolved(rotate_degrees=rotate_degrees, stain=0.1), SPEC, seed=0, step=0):
        assert view.pixels.isfinite().all()
    assert plain_view(batch, SPEC).isfinite().all()


def test_thin_images_are_not_averaged_away():
    """Three rows can be halved once; a crop of 3 x 4,000 would ask for an eighth."""
    levels = geometry.choose_levels(crops_of([(0, 0, 3, 4000)]), torch.tensor([[3, 4000]]), 16)
    assert levels.tolist() == [1]
    assert sampled(noise(1, 3, 4000), crops_of([(0, 0, 3, 4000)]), 16).isfinite().all()


@pytest.fixture
def poisoned_memory():
    """Memory that was never written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [(96, 96), (96, 120), (64, 64), (131, 130), (257, 300)])
def test_nothing_beyond_a_copy_is_read(poisoned_memory, size):
    """The atlas has gaps, and its copies touch each other; images without padding fill it to the edge."""
    batch = batch_of(noise(48, *size))
    for step in range(3):
        for view in make_views(batch, resolved(rotate_degrees=30.0), SPEC, seed=0, step=step):
            assert view.pixels.isfinite().all()


def test_the_first_row_of_a_copy_is_not_mixed_with_the_padding_above_it():
    """In the atlas the halved copy hangs below the padding of the image itself."""
    for rows in range(100, 260, 3):
        pixels = torch.full((1, 3, rows, 101), float("nan"))
        pixels[:, :, :92, :92] = 0.5
        crops, sizes = crops_of([(0, 0, 92, 92)]), torch.tensor([[92, 92]])
        levels = geometry.choose_levels(crops, sizes, 64)
        assert levels.tolist() == [1]
        found = sampled_from(pixels, sizes, crops, levels, 64)
        torch.testing.assert_close(found, torch.full_like(found, 0.5))


def test_copies_do_not_bleed_into_each_other():
    """A white image stays white from every level, although the atlas is black between its copies."""
    pixels = torch.ones(1, 3, 200, 300)
    for side, size_px in [(200, 128), (200, 64), (200, 24)]:
        for top, left in [(0, 0), (200 - side, 300 - side)]:
            found = sampled(pixels, crops_of([(top, left, side, side)]), size_px)
            torch.testing.assert_close(found, torch.ones_like(found), atol=1e-6, rtol=0)


def test_padding_changes_nothing():
    alone = noise(6, 40, 50)
    padded = torch.full((6, 3, 96, 120), 9.0)
    padded[:, :, :40, :50] = alone
    config = resolved()
    one = make_views(batch_of(alone), config, SPEC, seed=0, step=0)
    other = make_views(batch_of(padded, [(40, 50)] * 6), config, SPEC, seed=0, step=0)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.box, b.box)
        torch.testing.assert_close(a.pixels, b.pixels, atol=3e-3, rtol=0)


def test_box_is_where_the_crop_was_taken():
    """An image that holds its own coordinates shows where each view came from."""
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    pixels = torch.stack([y / 120, x / 120, y * 0]).expand(8, 3, 96, 120).contiguous()
    quiet = resolved(jitter_prob=0.0, grey_prob=0.0, blur_prob=(0.0, 0.0, 0.0))
    for view in make_views(batch_of(pixels), quiet, SPEC, seed=2, step=0):
        middle = view.pixels[:, :2].mean(dim=(2, 3)) * 120
        torch.testing.assert_close(middle, view.box[:, :2] + view.box[:, 2:] / 2, atol=0.2, rtol=0)
        span = (view.pixels[:, :2].amax(dim=(2, 3)) - view.pixels[:, :2].amin(dim=(2, 3))) * 120
        size_px = view.pixels.shape[-1]
        torch.testing.assert_close(span, view.box[:, 2:] * (size_px - 1) / size_px, atol=1.5, rtol=0)


# --- views -------------------------------------------------------------------------------------


def test_globals_first_with_their_sizes():
    config = resolved(local_count=3)
    views = make_views(batch_of(noise(5, 48, 60)), config, SPEC, seed=0, step=0)
    assert [v.role for v in views] == ["global"] * 2 + ["local"] * 3
    assert [tuple(v.pixels.shape) for v in views] == [(5, 3, 32, 32)] * 2 + [(5, 3, 16, 16)] * 3
    assert all(v.box.shape == (5, 4) and v.pixels.is_contiguous() for v in views)
    assert all(v.pixels.min() >= 0 and v.pixels.max() <= 1 for v in views)
    areas = [(v.box[:, 2] * v.box[:, 3]).max() / (48 * 60) for v in views]
    assert all(area > 0.4 for area in areas[:2]) and all(area <= 0.4 + 1e-5 for area in areas[2:])
    assert len(make_views(batch_of(noise(5, 48, 60)), resolved(local_count=0), SPEC, seed=0, step=0)) == 2


def test_a_sample_does_not_depend_on_its_batch():
    """Alone, in another order, beside larger images and in another process: the same views."""
    pixels = smooth(12, 60, 48)
    config = resolved(stain=0.1, solarise_prob=0.5, rotate_degrees=10.0)
    whole = make_views(batch_of(pixels), config, SPEC, seed=1, step=3)
    chosen = torch.tensor([7, 2, 9])
    few = make_views(Batch(pixels[chosen], torch.tensor([(60, 48)] * 3), chosen), config, SPEC, seed=1, step=3)
    for a, b in zip(whole, few, strict=True):
        assert (a.box[chosen] == b.box).all()
        torch.testing.assert_close(a.pixels[chosen], b.pixels, atol=1e-4, rtol=0)


def test_seed_step_and_view_change_everything():
    batch = batch_of(smooth(4, 60, 48))
    boxes = [
        v.box
        for seed, step in [(0, 0), (1, 0), (0, 1)]
        for v in make_views(batch, resolved(local_scale=(0.4, 1.0)), SPEC, seed=seed, step=step)
    ]
    flat = torch.stack(boxes).flatten(0, 1)
    assert len(flat.unique(dim=0)) == len(flat)


def test_blur_and_solarise_by_role():
    """Probability 1 for one role changes that role alone."""
    batch = batch_of(noise(6, 48, 48))
    off = {"jitter_prob": 0.0, "grey_prob": 0.0, "local_count": 2}
    plain = make_views(batch, resolved(**off, blur_prob=(0.0, 0.0, 0.0)), SPEC, seed=0, step=0)
    for kind, touched in [(0, [0]), (1, [1]), (2, [2, 3])]:
        chances = tuple(float(k == kind) for k in range(3))
        config = resolved(**off, blur_prob=chances, blur_sigma=(8.0, 9.0))
        views = make_views(batch, config, SPEC, seed=0, step=0)
        differs = [n for n, (a, b) in enumerate(zip(plain, views, strict=True)) if not torch.equal(a.pixels, b.pixels)]
        assert differs == touched
    solarised = make_views(batch, resolved(**off, blur_prob=(0.0, 0.0, 0.0), solarise_prob=1.0), SPEC, seed=0, step=0)
    assert [torch.equal(a.pixels, b.pixels) for a, b in zip(plain, solarised, strict=True)] == [True, False, True, True]
    assert solarised[1].pixels.max() <= 0.5


def test_shares_of_changed_samples():
    """grey_prob of the samples are grey, within the error of 2,000 draws."""
    pixels = smooth(2000, 12, 12)
    config = resolved(global_count=1, local_count=0, global_px=8, grey_prob=0.2, blur_prob=(0.0, 0.0, 0.0))
    (view,) = make_views(batch_of(pixels), config, SPEC, seed=0, step=0)
    grey = (view.pixels.amax(dim=1) - view.pixels.amin(dim=1)).flatten(1).amax(dim=1) < 1e-4
    assert grey.float().mean() == pytest.approx(0.2, abs=0.04)


def test_colours_are_distributed_as_torchvision_changes_them():
    """Mean and spread, over 2,000 draws, of what colour jitter, grey and blur do to one image."""
    pixels = (0.3 + 0.4 * smooth(1, 16, 16)).expand(2000, -1, -1, -1)
    whole = {"global_scale": (1.0, 1.0), "aspect": (1.0, 1.0), "hflip": False, "vflip": False, "turn90": False}
    changes = {"jitter_prob": 0.8, "brightness": 0.3, "contrast": 0.3, "saturation": 0.2, "hue": 0.05}
    blur = {"blur_prob": (0.5, 0.0, 0.0), "blur_sigma": (0.5 * 14, 1.5 * 14)}  # in pixels of 224; the view has 16
    config = resolved(**whole, **changes, **blur, grey_prob=0.2, global_count=1, local_count=0, global_px=16)
    (view,) = make_views(batch_of(pixels), config, SPEC, seed=0, step=0)
    theirs = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.2, 0.05)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.5, 1.5))], p=0.5),
        ]
    )
    torch.manual_seed(0)
    expected = torch.stack([theirs(one) for one in pixels])
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3)), lambda x: x.amax(1).mean((1, 2))[:, None]):
        ours, torchvisions = statistic(view.pixels), statistic(expected)
        error = torchvisions.std(0) / 2000**0.5
        assert ((ours.mean(0) - torchvisions.mean(0)).abs() < 6 * error + 2e-3).all()
        torch.testing.assert_close(ours.std(0), torchvisions.std(0), rtol=0.1, atol=1e-3)


def test_views_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    batch = batch_of(noise(12, 90, 70))
    config = resolved(stain=0.1, solarise_prob=0.5, blur_prob=(1.0, 0.5, 0.5))
    together = make_views(batch, config, SPEC, seed=0, step=0)
    monkeypatch.setattr(views, "CACHE_ELEMENTS", 1)
    for one, other in zip(make_views(batch, config, SPEC, seed=0, step=0), together, strict=True):
        torch.testing.assert_close(one.pixels, other.pixels, rtol=0, atol=1e-5)
        assert (one.box == other.box).all()


def test_eight_bits_and_their_floats_give_the_same_views():
    eight = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes, indices = torch.full((4, 2), 48), torch.arange(4)
    config = resolved()
    raw = make_views(Batch(eight, sizes, indices, 0.0, 255.0), config, SPEC, seed=0, step=0)
    floats = make_views(Batch(eight / 255, sizes, indices), config, SPEC, seed=0, step=0)
    for one, other in zip(raw, floats, strict=True):
        assert (one.pixels == other.pixels).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels(channels):
    spec = dataclasses.replace(SPEC, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    config = resolve_views(ViewsConfig(), size_px=32, channels=channels, patch=8, local_count=2)
    assert (config.saturation, config.hue, config.grey_prob, config.stain) == (0.0, 0.0, 0.0, 0.0)
    views = make_views(batch_of(noise(4, 48, 48, channels)), config, spec, seed=0, step=0)
    assert len(views) == 4 and views[0].pixels.shape == (4, channels, 32, 32)
    pixels = noise(1, 8, 8, channels)
    change = color.draw_jitter(torch.tensor([0.9]), torch.tensor([0.7]), torch.ones(1), torch.zeros(1), 1)
    found = color.jitter(pixels, change)
    torch.testing.assert_close(found, 0.9 * (0.7 * pixels + 0.3 * pixels.mean()))


def test_grey_spec_comes_before_everything():
    spec = dataclasses.replace(SPEC, grey=True)
    pixels = smooth(4, 48, 48)
    for shown in [*(v.pixels for v in make_views(batch_of(pixels), resolved(), spec, seed=0, step=0)),
                  plain_view(batch_of(pixels), spec)]:  # fmt: skip
        torch.testing.assert_close(shown[:, 0], shown[:, 2], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        plain_view(batch_of(pixels), spec)[:, :1],
        TF.resize(TF.rgb_to_grayscale(pixels), [32, 32], antialias=True),
        atol=3e-4,
        rtol=0,
    )


def test_no_mixing_of_devices_and_no_waiting_for_one():
    """The meta device has no values: reading one back, or meeting a tensor of another device, raises."""
    config = resolved(stain=0.1, solarise_prob=0.5, rotate_degrees=10.0)
    for channels, grey in [(3, False), (3, True), (1, False)]:
        spec = InputSpec(channels, 32, 0, 1, (0.5,) * channels, (0.2,) * channels, grey)
        chosen = (
            config if channels == 3 else resolve_views(ViewsConfig(), size_px=32, channels=1, patch=8, local_count=2)
        )
        batch = batch_of(noise(4, 60, 50, channels))
        views = make_views(batch, chosen, spec, seed=0, step=0, device=torch.device("meta"))
        assert all(v.pixels.device.type == v.box.device.type == "meta" for v in views)


@pytest.mark.parametrize("size", [(48, 48), (60, 48), (20, 90), (32, 32)])
def test_plain_view_equals_torchvision(size):
    pixels = noise(2, *size)
    expected = TF.center_crop(TF.resize(pixels, 32, antialias=True), [32, 32])
    padded = torch.zeros(2, 3, 96, 96)
    padded[:, :, : size[0], : size[1]] = pixels
    mixed = batch_of(torch.cat([padded, noise(1, 96, 96)]), [size, size, (96, 96)])
    found = plain_view(mixed, SPEC)
    assert found.shape == (3, 3, 32, 32)
    if abs(size[0] - size[1]) % 2 == 0:
        torch.testing.assert_close(found[:2], expected, atol=1e-5, rtol=0)
