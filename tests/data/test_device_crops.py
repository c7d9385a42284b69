"""Crops of a whole batch on a device are those that Pillow makes one by one, to the bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa.data import ArraySource, DataConfig, DemoConfig, TrainingStream, device_images
from cjepa.data.crops import Box, resized
from cjepa.data.device_crops import resized_boxes
from cjepa.types import Batch, Masks

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]
SIZES = [((32, 32), (32, 32)), ((96, 96), (96, 96)), ((28, 28), (32, 32)), ((20, 64), (41, 64)), ((5, 9), (31, 40))]


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    """Half of them noise, half of them only black and white, whose sums reach both ends of the range."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, *size), dtype=np.uint8)
    images[count // 2 :] = np.where(images[count // 2 :] > 128, 255, 0)
    return images


def boxes(count: int, size: tuple[int, int]) -> list[Box]:
    draws, made = np.random.default_rng(1), []
    for _ in range(count):
        height, width = draws.integers(1, size[0] + 1), draws.integers(1, size[1] + 1)
        top, left = draws.integers(0, size[0] - height + 1), draws.integers(0, size[1] - width + 1)
        made.append(Box(int(left), int(top), int(width), int(height)))
    return [*made[:-1], Box(0, 0, size[1], size[0])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("full", "size"), SIZES, ids=str)
def test_every_bit_is_that_of_pillow(full: tuple[int, int], size: tuple[int, int], device: str) -> None:
    images, places = pictures(150, full), boxes(150, full)
    found = resized_boxes(torch.from_numpy(images).to(device), places, size).cpu().numpy()
    for image, box, crop in zip(images, places, found, strict=True):
        expected = resized(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), box, size)
        np.testing.assert_array_equal(crop, expected)


def stream(flip: bool, images: np.ndarray) -> TrainingStream:
    def sampler(step: int, first: int, count: int) -> Masks:
        return Masks(torch.zeros(count, 1, dtype=torch.long), torch.zeros(count, 1, 1, dtype=torch.long))

    source = ArraySource(images, np.zeros(len(images), np.int64), ("a",))
    return TrainingStream(source, DataConfig(source=DemoConfig(), image_size=32, flip=flip), sampler, 16, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_those_of_the_ordinary_path(flip: bool) -> None:
    plain, fast = stream(flip, pictures(40, (32, 32))), stream(flip, pictures(40, (32, 32)))
    fast.on_device = device_images(fast.source, fast.config, CPU, 1e9)
    assert fast.on_device is not None
    for step in range(6):  # over the end of an epoch too
        expected, found = plain[step], fast[step]
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.samples, expected.samples)


@pytest.mark.parametrize(
    ("size", "memory", "why"), [((33, 20), 1e9, "larger than the crops"), ((32, 32), 1e5, "more than its share")]
)
def test_where_it_would_not_be_the_same_or_not_fit_it_is_not_used(
    size: tuple[int, int], memory: float, why: str
) -> None:
    images = pictures(40, size)
    source = ArraySource(images, np.zeros(40, np.int64), ("a",))
    assert device_images(source, DataConfig(source=DemoConfig(), image_size=32), CPU, memory) is None, why


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pinned_batch_is_the_same_batch() -> None:
    batch = stream(False, pictures(40, (32, 32)))[0]
    pinned = batch.pin_memory()
    assert isinstance(pinned, Batch)
    assert pinned.images.is_pinned()
    assert pinned.masks.targets.is_pinned()
    assert torch.equal(pinned.images, batch.images)
