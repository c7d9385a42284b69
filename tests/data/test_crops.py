import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cjepa.data.crops import DRAWS, Box, centre_crop, random_box, random_crop, resized, training_box

SCALE, RATIO = (0.3, 1.0), (3 / 4, 4 / 3)
UNIT = st.floats(0, 1, exclude_max=True)
SIDE = st.integers(1, 400)


@settings(max_examples=300, deadline=None)
@given(st.lists(UNIT, min_size=DRAWS, max_size=DRAWS), SIDE, SIDE)
def test_the_box_lies_in_the_image(draws: list[float], height: int, width: int) -> None:
    box = random_box(draws, (height, width), SCALE, RATIO)
    assert box.width >= 1
    assert box.height >= 1
    assert 0 <= box.left <= width - box.width
    assert 0 <= box.top <= height - box.height


def boxes(count: int, size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    draws = np.random.default_rng(0).random((count, DRAWS))
    return np.array([random_box(row, size, scale, RATIO) for row in draws.tolist()])


def test_area_is_uniform_and_aspect_log_uniform() -> None:
    _, _, width, height = boxes(20_000, (1000, 1000), (0.1, 0.3)).T
    areas, aspects = width * height / 1e6, np.log(width / height) / np.log(4 / 3)
    for values, low, high in ((areas, 0.1, 0.3), (aspects, -1, 1)):
        shares = np.histogram(values, bins=10, range=(low, high))[0] / len(values)
        np.testing.assert_allclose(shares, 0.1, atol=0.012)
    assert abs(np.corrcoef(areas, aspects)[0, 1]) < 0.03


def test_rows_and_columns_are_independent() -> None:
    left, top, width, height = boxes(20_000, (1000, 1000), (0.2, 0.2)).T
    assert abs(np.corrcoef(left / (1000 - width), top / (1000 - height))[0, 1]) < 0.03


def test_every_position_is_reached_the_last_included() -> None:
    left, top, width, height = boxes(5000, (8, 8), (0.3, 0.3)).T
    for start, side in ((left, width), (top, height)):
        for size in np.unique(side):
            counts = np.bincount(start[side == size].astype(int), minlength=int(8 - size) + 1)
            assert len(counts) == 8 - size + 1
            assert counts.min() > 0.6 * counts.mean()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 5000), Box(2499, 0, 1, 1)), ((5000, 1), Box(0, 2499, 1, 1)), ((30, 300), Box(130, 0, 40, 30))],
)
def test_oblong_images_fall_back_to_a_central_box(size: tuple[int, int], expected: Box) -> None:
    assert random_box([0.999] * DRAWS, size, (0.99, 1.0), RATIO) == expected


def test_ratios_are_relative_to_the_image_size() -> None:
    draws = np.random.default_rng(1).random((200, DRAWS)).tolist()
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (128, 256, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    spans = [np.ptp(random_crop(image, row, (32, 64), SCALE, (1.0, 1.0), False)[0]) for row in draws]
    areas = [0.3 + 0.7 * row[0] for row in draws]  # at the ratio of the image every area fits at once
    np.testing.assert_allclose(spans, 256 * np.sqrt(areas), atol=8)


def test_flip_mirrors_half_of_the_crops_and_is_off_by_default() -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    draws = np.random.default_rng(2).random((400, DRAWS)).tolist()
    mirrored = 0
    for row in draws:
        plain = random_crop(image, row, (8, 8), SCALE, RATIO, False)
        flipped = random_crop(image, row, (8, 8), SCALE, RATIO, True)
        assert plain[0, 0, 0] < plain[0, 0, -1]
        mirrored += int(flipped[0, 0, 0] > flipped[0, 0, -1])
        assert np.array_equal(plain, flipped) or np.array_equal(plain, flipped[:, :, ::-1])
    assert 150 < mirrored < 250


def test_only_the_box_is_resampled() -> None:
    """What lies outside the box must not bleed in, or targets at a border would see beyond the crop."""
    canvas = np.zeros((90, 90, 3), dtype=np.uint8)
    canvas[30:60, 30:60] = 255
    inside = resized(Image.fromarray(canvas), Box(30, 30, 30, 30), (8, 8))
    assert inside.shape == (3, 8, 8)
    assert inside.dtype == np.uint8
    assert (inside == 255).all()


def test_shrinking_in_two_stages_cannot_be_seen() -> None:
    """Against one filter over the whole box (torchvision's resized_crop), on a picture with detail at all scales."""
    rng = np.random.default_rng(0)
    layers = [np.kron(rng.normal(size=(512 // n, 512 // n, 3)), np.ones((n, n, 1))) for n in (1, 2, 4, 8, 16, 32)]
    image = Image.fromarray((np.clip(sum(layers) * 20 + 128, 0, 255)).astype(np.uint8))
    expected = np.asarray(image.crop((37, 11, 437, 391)).resize((32, 32), Image.Resampling.BILINEAR))
    difference = resized(image, Box(37, 11, 400, 380), (32, 32)).transpose(1, 2, 0) - expected.astype(float)
    assert np.abs(difference).max() <= 6
    assert np.sqrt((difference**2).mean()) < 1.5


@pytest.mark.parametrize("size", [(32, 32), (90, 60), (224, 224)], ids=str)
def test_a_training_crop_is_that_of_one_filter_over_the_box_but_for_rounding(size: tuple[int, int]) -> None:
    """Against Pillow's filter over the whole box (torchvision's resized_crop), enlarged, reduced and both."""
    rng = np.random.default_rng(0)
    layers = [np.kron(rng.normal(size=(256 // n, 256 // n, 3)), np.ones((n, n, 1))) for n in (1, 2, 4, 8, 16, 32)]
    image = Image.fromarray((np.clip(sum(layers) * 20 + 128, 0, 255)).astype(np.uint8))
    kinds = set()
    for row in rng.random((60, DRAWS)).tolist():
        box = training_box(row, (256, 256), size, (0.05, 1.0), RATIO)
        kinds.add((box.width > size[1], box.height > size[0]))
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        expected = np.asarray(part.resize((size[1], size[0]), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        found = random_crop(image, row, size, (0.05, 1.0), RATIO, flip=False)
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert len(kinds) > 1 or size == (32, 32)  # of this image all boxes are larger


def test_the_whole_image_at_its_own_size_is_unchanged() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(canvas), (16, 24), 1.0), canvas.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "share", "rows", "columns"),
    [
        ((20, 20), 1.0, slice(0, 40), slice(20, 60)),
        ((20, 20), 0.5, slice(10, 30), slice(30, 50)),
        ((10, 20), 1.0, slice(0, 40), slice(0, 80)),
        ((20, 10), 1.0, slice(0, 40), slice(30, 50)),
    ],
)
def test_centre_crop_is_the_middle(size: tuple[int, int], share: float, rows: slice, columns: slice) -> None:
    y, x = np.mgrid[0:40, 0:80].astype(np.uint8)
    canvas = np.dstack([y * 6, x * 3, np.zeros_like(x)])
    part = canvas[rows, columns]
    shape = (size[0], part.shape[0] // size[0], size[1], part.shape[1] // size[1], 3)
    means = part.reshape(shape).mean(axis=(1, 3)).transpose(2, 0, 1)  # by area; the filter is wider, same on a ramp
    np.testing.assert_allclose(
        centre_crop(Image.fromarray(canvas), size, share)[:, 1:-1, 1:-1], means[:, 1:-1, 1:-1], atol=1.01
    )


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 1.0))
def test_centre_crop_takes_any_size(width: int, height: int, rows: int, columns: int, share: float) -> None:
    crop = centre_crop(Image.new("RGB", (width, height), (9, 9, 9)), (rows, columns), share)
    assert crop.shape == (3, rows, columns)
    assert (crop == 9).all()
