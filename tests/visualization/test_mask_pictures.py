import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.colors import to_hex

from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.types import Masks
from cjepa.visualization import coverage, mask_examples, save
from cjepa.visualization.masks import MOST_EXAMPLES, coverage_shares, dim, edges, patch_mask
from cjepa.visualization.style import COLOURS

GRID = (4, 6)
blocks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=7))


def images(count, height=8, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def sampled(count, step=0):
    return build_sampler(MultiblockConfig(min_context=1), GRID, 0, 32)(step, 0, count)


def lengths(lines):
    return np.abs(lines[:, 1] - lines[:, 0]).sum(axis=1)


def test_patch_mask_marks_the_patches_row_by_row():
    mask = patch_mask(torch.tensor([[[0, 7], [5, 23]]]), GRID)
    assert mask.shape == (1, 2, *GRID)
    assert np.argwhere(mask).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 5], [0, 1, 3, 5]]


def test_dim_fades_hidden_patches_and_leaves_the_others():
    image = images(1)
    hidden = np.zeros((1, *GRID), dtype=np.bool_)
    hidden[0, 1, 2] = True
    picture = dim(image, hidden, patch_size=2)
    expected = image[0].permute(1, 2, 0).numpy().copy()
    expected[2:4, 4:6] = np.rint(0.18 * expected[2:4, 4:6] + 0.82 * 235)
    np.testing.assert_array_equal(picture[0], expected)


def test_coverage_counts_images_of_all_steps():
    masks = [
        Masks(torch.tensor([[0, 1], [0, 2]]), torch.tensor([[[4], [4]], [[4], [5]]])),
        Masks(torch.tensor([[3]]), torch.tensor([[[4, 5]]])),
    ]
    context, target = coverage_shares(masks, (2, 3))
    np.testing.assert_allclose(context, np.array([[2, 1, 1], [1, 0, 0]]) / 3)
    np.testing.assert_allclose(target, np.array([[0, 0, 0], [0, 3, 2]]) / 3)


@given(blocks)
def test_an_outline_is_as_long_as_the_border(block):
    padded = np.pad(block, 1)
    border = sum(int((np.diff(padded.astype(int), axis=axis) != 0).sum()) for axis in (0, 1))
    assert lengths(edges(block)).sum() == border


@given(blocks, st.floats(0.01, 0.45))
def test_an_inset_outline_is_closed_and_inside(block, inset):
    lines = edges(block, inset)
    ends, counts = np.unique(lines.reshape(-1, 2).round(9), axis=0, return_counts=True)
    assert (counts % 2 == 0).all()
    # Every corner lies within a patch of the block.
    assert all(block[int(y), int(x)] for x, y in ends)


def test_the_outline_of_a_rectangle():
    block = np.zeros((5, 5), dtype=np.bool_)
    block[1:3, 2:5] = True
    corners = {tuple(corner) for corner in edges(block, 0.25).reshape(-1, 2).tolist()}
    assert corners == {(2.25, 1.25), (4.75, 1.25), (2.25, 2.75), (4.75, 2.75)}
    assert len(edges(block, 0.25)) == 4


def test_each_image_has_its_picture_context_and_outlined_targets(tmp_path):
    figure = mask_examples(images(3), sampled(3), patch_size=2)
    assert len(figure.axes) == 9
    assert [len(axes.images) for axes in figure.axes] == [1] * 9
    outlines = [[to_hex(lines.get_color()[0]).upper() for lines in axes.collections] for axes in figure.axes]
    assert outlines[:3] == [[]] * 3
    assert outlines[6:] == [list(COLOURS[:4])] * 3
    assert figure.get_suptitle() == "Masks on 4 × 6 patches: what is seen and what is predicted"
    save(figure, tmp_path / "masks.png")


def test_the_pictures_show_context_and_targets():
    masks = sampled(2)
    figure = mask_examples(images(2), masks, patch_size=2)
    context = figure.axes[3].images[0].get_array()
    hidden = ~patch_mask(masks.context[:, None], GRID)[:, 0]
    np.testing.assert_array_equal(context, dim(images(2), hidden, 2)[1])
    targets = figure.axes[5].images[0].get_array()
    outside = ~patch_mask(masks.targets, GRID).any(axis=1)
    np.testing.assert_array_equal(targets, dim(images(2), outside, 2)[1])


def test_the_numbers_of_patches_are_stated():
    masks = sampled(1)
    texts = [text.get_text() for axes in mask_examples(images(1), masks, 2).axes for text in axes.texts]
    assert texts == [
        "image",
        "8 × 12 pixels",
        "context",
        f"{masks.context.shape[1]} of 24 patches",
        "4 targets",
        f"of {masks.targets.shape[2]} patches each",
    ]


def test_only_the_first_images_are_shown_also_when_there_are_more_masks():
    assert len(mask_examples(images(9), sampled(20), 2).axes) == 3 * MOST_EXAMPLES


def test_more_blocks_than_colours(tmp_path):
    many = build_sampler(MultiblockConfig(min_context=1, targets=9, target_area=(0.04, 0.04)), GRID, 0, 4)(0, 0, 1)
    save(mask_examples(images(1), many, 2), tmp_path / "masks.png")


def test_a_patch_size_that_does_not_fit_is_refused():
    with pytest.raises(AssertionError, match="do not divide a width of 12"):
        mask_examples(images(1), sampled(1), patch_size=8)


def test_coverage_states_its_numbers(tmp_path):
    masks = [sampled(16, step) for step in range(3)]
    context, target = coverage_shares(masks, GRID)
    figure = coverage(masks, GRID)
    assert figure.get_suptitle() == "How often each patch is used, over 48 images of 3 steps"
    shown = [axes.images[0].get_array() for axes in figure.axes[:2]]
    np.testing.assert_allclose(shown, [100 * context, 100 * target])
    assert f"{100 * context.mean():.0f} % on average" in figure.axes[0].get_title(loc="left")
    assert [text.get_text() for text in figure.axes[1].texts] == [f"{100 * share:.0f}" for share in target.flat]
    save(figure, tmp_path / "coverage.png")


def test_fine_grids_have_no_numbers_in_them():
    masks = build_sampler(MultiblockConfig(), (14, 14), 0, 8)(0, 0, 8)
    assert len(coverage([masks], (14, 14)).axes[0].texts) == 0
