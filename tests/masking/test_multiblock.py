"""Our sampler: unbiased, of lengths that depend on the step alone, and refused where it cannot work."""

import pickle
import time

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.errors import InputError
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.masking.blocks import Size
from cjepa.masking.multiblock import ATTEMPTS, MultiblockSampler
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Masks, MaskSampler

Shares = npt.NDArray[np.float64]


def shares(sampler: MaskSampler, grid: Size, steps: int, batch: int) -> tuple[Shares, Shares]:
    """For each patch of the grid: how often it is context, and how many target blocks hold it on average."""
    masks = [sampler(step, 0, batch) for step in range(steps)]
    flat = ([m.context.flatten() for m in masks], [m.targets.flatten() for m in masks])
    context, targets = (torch.bincount(torch.cat(parts), minlength=grid.area).numpy() for parts in flat)
    return (context / (steps * batch)).reshape(grid), (targets / (steps * batch)).reshape(grid)


@pytest.fixture(scope="module", params=[Size(14, 14), Size(8, 8), Size(6, 12)], ids=str)
def measured(request: pytest.FixtureRequest) -> tuple[Shares, Shares]:
    return shares(build_sampler(MultiblockConfig(), request.param, 0, 64), request.param, 200, 64)


def test_coverage_is_the_same_from_top_and_bottom_and_from_left_and_right(measured: tuple[Shares, Shares]) -> None:
    """The reference sampler differs by .75 between the first and the last row."""
    for share in measured:
        rows, columns = share.mean(axis=1), share.mean(axis=0)
        np.testing.assert_allclose(rows, rows[::-1], atol=0.03)
        np.testing.assert_allclose(columns, columns[::-1], atol=0.03)


def test_every_patch_is_context_and_target_often(measured: tuple[Shares, Shares]) -> None:
    context, targets = measured
    assert context.min() > 0.05
    assert targets.min() > 0.01


def test_the_last_row_and_column_are_targets_as_often_as_the_first(measured: tuple[Shares, Shares]) -> None:
    _, targets = measured
    assert targets[-1].mean() == pytest.approx(targets[0].mean(), rel=0.1)
    assert targets[:, -1].mean() == pytest.approx(targets[:, 0].mean(), rel=0.1)


def drawn_sizes(sampler: MultiblockSampler, steps: int) -> tuple[Shares, Shares]:
    """Areas and log-aspects of the target blocks of many steps."""
    heights, widths = np.array([sampler.block_sizes(step)[0] for step in range(steps)], dtype=float).T
    return heights * widths, np.log(heights / widths)


def test_area_and_aspect_are_independent_and_fill_their_ranges() -> None:
    """On a fine grid, where rounding to patches hides nothing; the reference sampler's correlate at more than .9."""
    grid = Size(80, 80)
    areas, aspects = drawn_sizes(MultiblockSampler(MultiblockConfig(), grid, 0), 600)
    assert abs(np.corrcoef(areas, aspects)[0, 1]) < 0.12  # 3 standard errors
    np.testing.assert_allclose(np.quantile(areas / grid.area, [0.01, 0.5, 0.99]), [0.15, 0.175, 0.2], atol=0.004)
    low, high = np.log([0.75, 1.5])
    np.testing.assert_allclose(np.quantile(aspects, [0.01, 0.5, 0.99]), [low, (low + high) / 2, high], atol=0.04)


def test_the_context_block_fills_its_range_with_the_aspect_of_the_grid() -> None:
    sampler = MultiblockSampler(MultiblockConfig(), Size(40, 80), 0)
    heights, widths = np.array([sampler.block_sizes(step)[1] for step in range(300)], dtype=float).T
    np.testing.assert_allclose(heights / widths, 0.5, atol=0.02)
    areas = heights * widths / 3200
    np.testing.assert_allclose([areas.min(), np.median(areas), areas.max()], [0.85, 0.925, 1.0], atol=0.02)


def same(left: Masks, right: Masks) -> bool:
    return torch.equal(left.context, right.context) and torch.equal(left.targets, right.targets)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 100), st.integers(1, 5), st.integers(2, 400))
@settings(deadline=None, max_examples=30)
def test_masks_depend_on_the_sample_and_never_on_the_batch(
    seed: int, step: int, first: int, count: int, batch: int
) -> None:
    """One image drawn alone has the same masks, of the same lengths, as within any slice of any batch."""
    sampler = build_sampler(MultiblockConfig(), (8, 8), seed, batch)
    together = sampler(step, first, count)
    for image in range(count):
        alone = sampler(step, first + image, 1)
        assert same(alone, Masks(together.context[image : image + 1], together.targets[image : image + 1]))


def test_lengths_vary_with_the_step_and_not_with_the_batch() -> None:
    samplers = [build_sampler(MultiblockConfig(), (14, 14), 0, batch) for batch in (2, 4096)]
    lengths = [[s(step, 0, n).context.shape[1] for step in range(20)] for s, n in zip(samplers, (1, 300), strict=True)]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 5


def test_steps_seeds_and_images_have_other_masks() -> None:
    masks = build_sampler(MultiblockConfig(), (14, 14), 0, 8)(0, 0, 8)
    assert len({tuple(row.flatten().tolist()) for row in masks.targets}) == 8
    other_seed = build_sampler(MultiblockConfig(), (14, 14), 1, 8)
    assert not same(masks, other_seed(0, 0, 8))
    assert not same(masks, build_sampler(MultiblockConfig(), (14, 14), 0, 8)(1, 0, 8))


def test_a_sampler_survives_the_way_to_a_loader_worker() -> None:
    """Workers that are spawned, as on macOS and Windows, receive it pickled."""
    sampler = build_sampler(MultiblockConfig(), (14, 14), 5, 8)
    before = sampler(3, 0, 8)
    assert same(pickle.loads(pickle.dumps(sampler))(3, 0, 8), before)


def test_context_patches_are_a_random_subset_of_those_that_are_free() -> None:
    """With a context block as large as the grid, whatever is no target is free: the first indices are not preferred."""
    grid = Size(10, 10)
    sampler = build_sampler(MultiblockConfig(context_area=(1.0, 1.0)), grid, 0, 64)
    kept, free = np.zeros(grid.area), np.zeros(grid.area)
    for step in range(150):
        masks = sampler(step, 0, 64)
        target = torch.zeros(64, grid.area).scatter_(1, masks.targets.flatten(1), 1.0)
        kept += torch.zeros(64, grid.area).scatter_(1, masks.context, 1.0).sum(dim=0).numpy()
        free += (1 - target).sum(dim=0).numpy()
    rate = (kept / free).reshape(grid)
    assert 0.7 < rate.mean() < 0.95  # some are cut, so that the choice matters
    np.testing.assert_allclose(rate.mean(axis=1), rate.mean(axis=1)[::-1], atol=0.03)
    assert np.corrcoef(rate.ravel(), np.arange(grid.area))[0, 1] == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("grid", "config"),
    [
        ((1, 1), MultiblockConfig()),
        ((2, 2), MultiblockConfig()),
        ((3, 3), MultiblockConfig()),
        ((14, 14), MultiblockConfig(target_area=(0.9, 0.9))),
        ((14, 14), MultiblockConfig(targets=16, target_area=(0.3, 0.3))),
        ((14, 14), MultiblockConfig(context_area=(0.01, 1.0))),
        ((14, 14), MultiblockConfig(min_context=150)),
        # Only a size between those of the extreme aspects leaves too little:
        ((5, 3), MultiblockConfig(targets=3, target_area=(0.253, 0.313), target_aspect=(0.44, 0.86))),
    ],
)
def test_scales_that_leave_no_context_are_refused_at_once(grid: tuple[int, int], config: MultiblockConfig) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=r"context patches, fewer than min_context.*use smaller patches"):
        build_sampler(config, grid, 0, 8)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (14, 14), (16, 4), (64, 64)])
def test_usual_grids_are_accepted_at_once(grid: tuple[int, int]) -> None:
    start = time.process_time()
    build_sampler(MultiblockConfig(), grid, 0, 8)
    assert time.process_time() - start < 1.0


@st.composite
def configs(draw: st.DrawFn) -> MultiblockConfig:
    """Any scales, sensible or not."""

    def ascending(low: float, high: float) -> tuple[float, float]:
        first, second = sorted(draw(st.tuples(*[st.floats(low, high)] * 2)))
        return first, second

    return MultiblockConfig(
        targets=draw(st.integers(1, 6)),
        target_area=ascending(0.01, 0.5),
        target_aspect=ascending(0.2, 5),
        context_area=ascending(0.3, 1.0),
        min_context=draw(st.integers(1, 6)),
    )


@given(configs(), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_what_is_accepted_gives_enough_context_at_every_step(
    config: MultiblockConfig, height: int, width: int, step: int
) -> None:
    try:
        sampler = build_sampler(config, (height, width), 0, 8)
    except InputError:
        return
    for some_step in range(step, step + 12):
        assert sampler(some_step, 0, 3).context.shape[1] >= config.min_context


@pytest.mark.parametrize("grid", [Size(8, 8), Size(6, 12), Size(14, 14)], ids=str)
def test_masks_are_those_of_a_search_image_by_image(grid: Size) -> None:
    """Without vectors: the first layout that leaves enough, and of its free patches those with the lowest scores."""
    config, blocks = MultiblockConfig(), MultiblockConfig().targets + 1
    sampler = MultiblockSampler(config, grid, 5)
    again = 0
    for step in range(4):
        masks = sampler(step, 3, 40)
        target, context = sampler.block_sizes(step)
        width = ATTEMPTS * blocks * 2
        layouts = uniform_rows(5, Stream.MASK_POSITIONS, step, 3, 40, width).reshape(40, ATTEMPTS, blocks, 2)
        scores = uniform_rows(5, Stream.MASK_SUBSETS, step, 3, 40, grid.area)
        for image in range(40):
            for attempt in range(ATTEMPTS):
                placed = [
                    patches_of(draw, size, grid)
                    for draw, size in zip(layouts[image, attempt], [target] * (blocks - 1) + [context], strict=True)
                ]
                free = sorted(set(placed[-1]).difference(*placed[:-1]))
                if len(free) >= masks.context.shape[1]:
                    break
                again += 1
            kept = sorted(free, key=lambda patch: scores[image, patch])[: masks.context.shape[1]]
            assert masks.context[image].tolist() == sorted(kept)
            assert masks.targets[image].tolist() == placed[:-1]
    assert again > 0


def patches_of(draw: Shares, block: Size, grid: Size) -> list[int]:
    top, left = int(draw[0] * (grid.height - block.height + 1)), int(draw[1] * (grid.width - block.width + 1))
    return [
        row * grid.width + column
        for row in range(top, top + block.height)
        for column in range(left, left + block.width)
    ]
