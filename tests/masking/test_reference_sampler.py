"""The public I-JEPA sampler's distribution: its published biases must be there, or the comparison is none."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.errors import InputError
from cjepa.masking import ReferenceConfig, build_sampler
from cjepa.masking.blocks import Size
from cjepa.masking.reference import ReferenceSampler
from cjepa.randomness import Stream, uniform_rows

PUBLISHED_ROWS = [0.75, 0.60, 0.47, 0.36, 0.26, 0.21, 0.19, 0.19, 0.19, 0.18, 0.13, 0.06, 0.02, 0.00]
"""Chance that a patch of each row is context, measured on the public code: 14 x 14 patches, 128 images per device."""


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, np.ndarray]:
    """Share of images in which each patch of 14 x 14 is context, and the same for target, at batch 128."""
    sampler = build_sampler(ReferenceConfig(), (14, 14), 0, 128)
    context, target = np.zeros(196), np.zeros(196)
    for step in range(120):
        masks = sampler(step, 0, 128)
        context += np.bincount(masks.context.flatten().numpy(), minlength=196)
        target += np.bincount(masks.targets.flatten().numpy(), minlength=196)
    return (context / (120 * 128)).reshape(14, 14), (target / (120 * 128)).reshape(14, 14)


def test_context_by_row_is_that_of_the_public_code(measured: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(measured[0].mean(axis=1), PUBLISHED_ROWS, atol=0.03)


def test_the_last_row_and_column_are_never_targets(measured: tuple[np.ndarray, np.ndarray]) -> None:
    _, target = measured
    assert target[-1].max() == 0
    assert target[:, -1].max() == 0
    assert target[:-1, :-1].min() > 0


def test_the_context_length_depends_on_the_batch() -> None:
    """Measured on the public code: 52 patches on average at batch 128, 64 at batch 8."""

    def mean_length(batch: int) -> float:
        sampler = build_sampler(ReferenceConfig(), (14, 14), 0, batch)
        return float(np.mean([sampler(step, 0, batch).context.shape[1] for step in range(120)]))

    assert mean_length(128) == pytest.approx(52, abs=3)
    assert mean_length(8) == pytest.approx(64, abs=3)


def test_one_number_draws_both_area_and_aspect() -> None:
    sampler = ReferenceSampler(ReferenceConfig(), Size(80, 80), 0, 8)
    heights, widths = np.array([sampler.block_sizes(step)[0] for step in range(300)], dtype=float).T
    assert np.corrcoef(heights * widths, heights / widths)[0, 1] > 0.9
    assert heights.max() * widths[heights.argmax()] / 6400 == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("side", [5, 7, 8, 12, 14])
def test_an_area_is_rounded_down_to_whole_patches_before_its_sides_are_rounded(side: int) -> None:
    """Else one target block in twelve is too large on 14 x 14 patches, one in five on 7 x 7."""
    grid, different = Size(side, side), 0
    sampler = ReferenceSampler(ReferenceConfig(min_keep=0), grid, 0, 8)
    for step in range(200):
        draw = uniform_rows(0, Stream.MASK_SIZES, step, 0, 1, 2)[0, 0]
        aspect, share = 0.75 + 0.75 * draw, 0.15 + 0.05 * draw
        whole = max(patches for patches in range(grid.area) if patches <= share * grid.area)
        sizes = [(round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)) for area in (whole, share * grid.area)]
        assert sampler.block_sizes(step)[0] == sizes[0]
        different += sizes[0] != sizes[1]
    assert different > 5


@given(st.integers(0, 100), st.integers(0, 7), st.integers(1, 8))
@settings(deadline=None, max_examples=20)
def test_slices_of_a_batch_equal_the_whole(step: int, first: int, count: int) -> None:
    sampler = build_sampler(ReferenceConfig(), (14, 14), 0, 8)
    whole, part = sampler(step, 0, 8), sampler(step, first, min(count, 8 - first))
    assert part.context.tolist() == whole.context[first : first + count].tolist()
    assert part.targets.tolist() == whole.targets[first : first + count].tolist()


@pytest.mark.parametrize(
    ("grid", "config"),
    [
        ((8, 8), ReferenceConfig()),  # the public code never ends here
        ((1, 14), ReferenceConfig()),
        ((2, 2), ReferenceConfig(min_keep=1)),
        ((14, 14), ReferenceConfig(context_area=(0.05, 1.0))),
        ((14, 14), ReferenceConfig(min_keep=196)),
        # Between the ends: a single patch, so tall that its width is rounded to nothing.
        ((10, 10), ReferenceConfig(min_keep=0, target_area=(0.011, 0.0201), target_aspect=(0.5, 4.05))),
    ],
)
def test_what_could_never_end_is_refused_at_once(grid: tuple[int, int], config: ReferenceConfig) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=r"would search for ever; lower masking\.min_keep"):
        build_sampler(config, grid, 0, 128)
    assert time.process_time() - start < 1.0


def test_contexts_are_those_of_a_search_image_by_image() -> None:
    """Twenty positions, then twenty new ones beside one target less, and so on: what the public sampler does."""
    config, grid = ReferenceConfig(target_area=(0.2, 0.3), context_area=(0.3, 0.4), min_keep=11), Size(9, 8)
    sampler = ReferenceSampler(config, grid, 5, 40)
    given_up = set()
    for step in range(4):
        masks = sampler(step, 0, 40)
        target, context = sampler.block_sizes(step)
        draws = uniform_rows(5, Stream.MASK_POSITIONS, step, 0, 40, 2 * (4 + 5 * 20)).reshape(40, 4 + 5 * 20, 2)
        for image in range(40):
            targets = [patches_of(draw, target, grid) for draw in draws[image, :4]]
            for attempt, draw in enumerate(draws[image, 4:]):
                respected = targets[: 4 - attempt // 20]
                left = sorted(set(patches_of(draw, context, grid)).difference(*respected))
                if len(left) > 11:
                    break
            given_up.add(attempt // 20)
            assert masks.targets[image].tolist() == targets
            assert masks.context[image].tolist() == left[: masks.context.shape[1]]
    assert len(given_up) > 2


def patches_of(draw: np.ndarray, block: Size, grid: Size) -> list[int]:
    top, left = int(draw[0] * (grid.height - block.height)), int(draw[1] * (grid.width - block.width))
    return [
        row * grid.width + column
        for row in range(top, top + block.height)
        for column in range(left, left + block.width)
    ]


def test_targets_that_cover_nearly_everything_are_given_up_one_by_one() -> None:
    """As in the public code: a context that cannot avoid all targets avoids fewer, and keeps enough patches."""
    config = ReferenceConfig(target_area=(0.6, 0.6), target_aspect=(1.0, 1.0), min_keep=20)
    masks = build_sampler(config, (14, 14), 0, 64)(0, 0, 64)
    assert masks.context.shape[1] > 20
    overlaps = [
        set(context.tolist()) & set(targets.flatten().tolist())
        for context, targets in zip(masks.context, masks.targets, strict=True)
    ]
    assert any(overlaps)
