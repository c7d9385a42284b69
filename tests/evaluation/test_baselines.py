"""Baseline features against numpy."""

import numpy as np
import torch

from cjepa.evaluation.baselines import colour_statistics, mean_colour, raw_pixels


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def test_small_images_keep_every_pixel() -> None:
    images = pictures(5, 8, 32)
    assert torch.equal(raw_pixels(images), (images.float() / 255).flatten(1))


def test_large_images_are_averaged_down() -> None:
    images = pictures(2, 64, 96)
    expected = images.double().view(2, 3, 32, 2, 32, 3).mean((3, 5)).flatten(1) / 255
    torch.testing.assert_close(raw_pixels(images), expected.float())


def test_colour_statistics_equal_numpy() -> None:
    images = pictures(1030, 4, 5)  # more than one chunk
    values = images.numpy() / 255
    expected = np.concatenate([values.mean((2, 3)), values.std((2, 3))], axis=1)
    np.testing.assert_allclose(colour_statistics(images).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(mean_colour(images).numpy(), expected[:, :3], atol=1e-6)
