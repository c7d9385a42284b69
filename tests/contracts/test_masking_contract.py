"""What every mask sampler must do. A new one in the union is tested without a line here."""

import pickle
import time
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cjepa.config import RunConfig, parse
from cjepa.errors import InputError
from cjepa.masking import MaskingConfig, build_sampler
from cjepa.types import Masks

VARIANTS = get_args(get_args(MaskingConfig)[0])
NAMES = [variant().name for variant in VARIANTS]
GIVE_UP_TARGETS = {"reference"}
"""Samplers that let context and targets overlap where a grid is too small for both, as the public code does."""
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
seeds, steps, sides = st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 16)


def strictly_ascending(indices: Tensor) -> bool:
    return bool((indices.diff(dim=-1) > 0).all())


def assert_valid(masks: Masks, grid: tuple[int, int], images: int, blocks: int, apart: bool = True) -> None:
    """Sorted, unique indices of the grid; each target a full rectangle; context apart from targets."""
    assert masks.context.dtype == masks.targets.dtype == torch.int64
    assert masks.context.shape[0] == masks.targets.shape[0] == images
    assert masks.targets.shape[1] == blocks
    assert masks.context.shape[1] > 0
    assert masks.targets.shape[2] > 0
    for indices in (masks.context, masks.targets):
        assert strictly_ascending(indices)
        assert indices.min() >= 0
        assert indices.max() < grid[0] * grid[1]
    rows, columns = masks.targets // grid[1], masks.targets % grid[1]
    heights = rows.amax(dim=-1) - rows.amin(dim=-1) + 1
    widths = columns.amax(dim=-1) - columns.amin(dim=-1) + 1
    assert (heights * widths == masks.targets.shape[2]).all()
    assert len(heights.unique()) == len(widths.unique()) == 1, "one block size per step"
    overlap = (masks.context[:, :, None] == masks.targets.flatten(1)[:, None, :]).any()
    assert not (apart and overlap)


def same(left: Masks, right: Masks) -> bool:
    return torch.equal(left.context, right.context) and torch.equal(left.targets, right.targets)


def test_names_are_unique_and_choose_the_variant() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 2
    for variant, name in zip(VARIANTS, NAMES, strict=True):
        assert type(TypeAdapter(MaskingConfig).validate_python({"name": name})) is variant


def test_invalid_masks_are_seen() -> None:
    """Each rule of the contract is broken once."""
    context, targets = torch.tensor([[0, 1, 5]]), torch.tensor([[[10, 11, 14, 15], [2, 3, 6, 7]]])
    assert_valid(Masks(context, targets), (4, 4), 1, 2)
    wrong = [
        Masks(torch.tensor([[1, 0, 5]]), targets),  # not sorted
        Masks(torch.tensor([[0, 0, 5]]), targets),  # not unique
        Masks(torch.tensor([[0, 1, 16]]), targets),  # outside the grid
        Masks(torch.tensor([[0, 1, 2]]), targets),  # also a target
        Masks(context, torch.tensor([[[10, 11, 14, 15], [2, 3, 4, 6]]])),  # not a rectangle
        Masks(context, torch.tensor([[[10, 11, 14, 15], [8, 9, 10, 11]]])),  # another size of block
        Masks(context[:, :0], targets),  # nothing to predict from
    ]
    for masks in wrong:
        with pytest.raises(AssertionError):
            assert_valid(masks, (4, 4), 1, 2)


@every_variant
@given(seed=seeds, step=steps, height=sides, width=sides, batch=st.integers(2, 24), data=st.data())
@settings(deadline=None, max_examples=60)
def test_masks_are_valid_or_refused_on_any_grid(
    variant: type, seed: int, step: int, height: int, width: int, batch: int, data: st.DataObject
) -> None:
    """And any slice of a batch is that slice of the whole."""
    config, grid = variant(), (height, width)
    try:
        sampler = build_sampler(config, grid, seed, batch)
    except InputError:
        return
    whole = sampler(step, 0, batch)
    assert_valid(whole, grid, batch, config.targets, apart=config.name not in GIVE_UP_TARGETS)
    first = data.draw(st.integers(0, batch - 1))
    count = data.draw(st.integers(1, batch - first))
    part = slice(first, first + count)
    assert same(sampler(step, first, count), Masks(whole.context[part], whole.targets[part]))


@every_variant
@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (24, 12), (9, 20)])
def test_usual_grids_are_accepted_and_valid_for_many_steps(variant: type, grid: tuple[int, int]) -> None:
    sampler = build_sampler(variant(), grid, 0, 16)
    for step in range(30):
        assert_valid(sampler(step, 0, 16), grid, 16, variant().targets)


@every_variant
@pytest.mark.parametrize("targets", [1, 2, 6])
def test_the_number_of_targets_is_that_of_the_config(variant: type, targets: int) -> None:
    config = variant(targets=targets)
    assert_valid(build_sampler(config, (14, 14), 0, 8)(0, 0, 8), (14, 14), 8, targets)


@every_variant
@given(height=st.integers(1, 3), width=st.integers(1, 3))
@settings(deadline=None, max_examples=9)
def test_impossible_grids_are_refused_at_once(variant: type, height: int, width: int) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=r"masking.*patches"):
        build_sampler(variant(), (height, width), 0, 256)
    assert time.process_time() - start < 1.0


@every_variant
def test_an_impossible_grid_is_refused_when_the_config_is_read(variant: type) -> None:
    """3 x 3 patches: nothing is opened, built or drawn before the refusal."""
    data = {"source": {"name": "folder", "path": "never-opened"}, "image_size": 48}
    values = {"data": data, "masking": {"name": variant().name}}
    with pytest.raises(InputError, match=r"masking.*3 x 3 patches"):
        parse(RunConfig, values)
    assert parse(RunConfig, values | {"data": data | {"image_size": 224}}).grid == (14, 14)


@every_variant
def test_masks_are_a_function_of_seed_step_and_sample(variant: type) -> None:
    sampler = build_sampler(variant(), (14, 14), 3, 8)
    masks = sampler(7, 0, 8)
    sampler(8, 0, 8)
    assert same(sampler(7, 0, 8), masks)
    assert same(build_sampler(variant(), (14, 14), 3, 8)(7, 0, 8), masks)
    assert not same(build_sampler(variant(), (14, 14), 4, 8)(7, 0, 8), masks)
    assert not torch.equal(sampler(8, 0, 8).targets, masks.targets)


@every_variant
def test_a_sampler_survives_the_way_to_a_loader_worker(variant: type) -> None:
    sampler = build_sampler(variant(), (14, 14), 3, 8)
    masks = sampler(7, 0, 8)
    assert same(pickle.loads(pickle.dumps(sampler))(7, 0, 8), masks)


@every_variant
@pytest.mark.parametrize(
    "keys",
    [
        {"target_area": (0.2, 0.15)},
        {"target_aspect": (1.5, 0.75)},
        {"context_area": (1.0, 0.85)},
        {"target_area": (0.0, 0.2)},
        {"target_area": (0.15, 1.2)},
        {"targets": 0},
    ],
)
def test_nonsense_is_refused(variant: type, keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        variant.model_validate(keys)
