"""Colour, blur, solarisation and stain against torchvision's single operations."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF

from saccade.augment import color


def smooth(images: int, rows: int, columns: int) -> torch.Tensor:
    """Images like photographs: most of the power in the low frequencies."""
    shape = (images, 3, rows // 6 + 2, columns // 6 + 2)
    coarse = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(rows, columns), mode="bicubic").clamp(0, 1)


def noise(images: int, rows: int, columns: int) -> torch.Tensor:
    return torch.rand(images, 3, rows, columns, generator=torch.Generator().manual_seed(1))


ONE, ZERO = torch.ones(3), torch.zeros(3)


def changed(pixels: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation and hue of three samples."""
    return color.jitter(pixels, color.draw_jitter(*numbers, 3))  # type: ignore[call-arg]


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.4])
@pytest.mark.parametrize(
    ("name", "place"), [("adjust_brightness", 0), ("adjust_contrast", 1), ("adjust_saturation", 2)]
)
def test_single_colour_changes_equal_torchvision(name, place, factor):
    pixels = noise(3, 24, 20)
    numbers = [ONE, ONE, ONE]
    numbers[place] = ONE * factor
    found = changed(pixels, *numbers, ZERO).clamp(0, 1)
    torch.testing.assert_close(found, getattr(TF, name)(pixels, factor), atol=1e-4, rtol=0)


def test_all_four_changes_follow_one_another():
    """The one matrix equals the single steps, one after another, where nothing is clamped on the way."""
    pixels = 0.4 + 0.2 * noise(3, 24, 20)
    b, c, s = torch.tensor([0.9, 1.1, 1.0]), torch.tensor([1.2, 0.8, 1.1]), torch.tensor([0.5, 1.3, 0.0])
    found = changed(pixels, b, c, s, ZERO)
    for k in range(3):
        expected = TF.adjust_brightness(pixels[k], b[k].item())
        expected = TF.adjust_contrast(expected, c[k].item())
        torch.testing.assert_close(found[k], TF.adjust_saturation(expected, s[k].item()), atol=1e-4, rtol=0)


def hue_of(pixels: torch.Tensor) -> torch.Tensor:
    """Share of a full turn, on the colour circle."""
    red, green, blue = pixels.unbind(1)
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * torch.pi)


@pytest.mark.parametrize("turns", [-0.1, -0.05, 0.05, 0.1])
def test_hue_turns_as_far_as_torchvisions(turns):
    """YIQ keeps luminance, HSV the largest channel: pixels differ, angles agree on average, each to 0.03 turns."""
    pixels = 0.3 + 0.4 * smooth(3, 24, 20)
    found = changed(pixels, ONE, ONE, ONE, ONE * turns)
    apart = (hue_of(found) - hue_of(TF.adjust_hue(pixels, turns)) + 0.5) % 1 - 0.5
    coloured = pixels.amax(dim=1) - pixels.amin(dim=1) > 0.1
    assert apart[coloured].mean().abs() < 0.01
    assert apart[coloured].abs().mean() < 0.03
    torch.testing.assert_close(color.to_grey(found), color.to_grey(pixels), atol=2e-3, rtol=0)


def test_a_full_turn_of_hue_changes_nothing():
    pixels = noise(3, 24, 20)
    torch.testing.assert_close(changed(pixels, ONE, ONE, ONE, ONE), pixels, atol=1e-3, rtol=0)


def test_grey_equals_torchvision():
    pixels = noise(3, 24, 20)
    expected = TF.rgb_to_grayscale(pixels, num_output_channels=3)
    torch.testing.assert_close(color.to_grey(pixels), expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(changed(pixels, ONE, ONE, ZERO, ONE * 0.1), expected, atol=1e-3, rtol=0)


def test_solarise_equals_torchvision():
    pixels = noise(3, 24, 20)
    torch.testing.assert_close(color.solarise(pixels), TF.solarize(pixels, 0.5))


@pytest.mark.parametrize("together", [1, 2, 100])
def test_blur_equals_torchvision_for_each_sample(monkeypatch, together):
    pixels = noise(5, 24, 24)
    monkeypatch.setattr(color, "BLUR_ELEMENTS", together * pixels[0].numel())
    sigmas = torch.tensor([0.8, 2.0, 0.0, 1.5, 0.3])
    found = color.blur_(pixels.clone(), color.draw_blur(sigmas, 24))
    for k, sigma in enumerate(sigmas.tolist()):
        reach = max(1, -int(-3 * sigma // 1))
        expected = TF.gaussian_blur(pixels[k], kernel_size=2 * reach + 1, sigma=sigma) if sigma else pixels[k]
        torch.testing.assert_close(found[k], expected, atol=1e-4, rtol=0)


def test_a_kernel_wider_than_the_image_is_cut_where_reflection_ends():
    found = color.blur_(noise(1, 4, 4), color.draw_blur(torch.tensor([5.0]), 4))
    assert found.isfinite().all() and found.std() < noise(1, 4, 4).std() / 3


def test_no_blur_leaves_every_bit():
    pixels = noise(3, 8, 8)
    assert (color.blur_(pixels.clone(), color.draw_blur(ZERO, 8)) == pixels).all()


def test_stain_jitter_moves_along_the_stain():
    """More haematoxylin in a picture of haematoxylin alone: its density grows, its colour stays."""
    amounts = torch.tensor([0.1, 0.4, 0.8]).view(3, 1)
    density = (amounts * color.STAINS[0])[:, :, None, None].expand(-1, -1, 4, 4)
    u = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.5, 0.5]]).expand(3, 6)
    found = -torch.log(color.stain_jitter(torch.exp(-density), u, 0.3))
    torch.testing.assert_close(found, density * 1.3, atol=1e-4, rtol=0)
    shifted = u.clone()
    shifted[:, 0], shifted[:, 4] = 0.5, 1.0
    added = -torch.log(color.stain_jitter(torch.exp(-density), shifted, 0.3)) - density
    torch.testing.assert_close(added[0, :, 0, 0], 0.06 * color.STAINS[1], atol=1e-4, rtol=0)
    still = color.stain_jitter(noise(3, 8, 8).clamp(0.01, 1), torch.full((3, 6), 0.5), 0.3)
    torch.testing.assert_close(still, noise(3, 8, 8).clamp(0.01, 1), atol=1e-4, rtol=0)
