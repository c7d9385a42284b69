"""Pictures as arrays: every image where it belongs."""

import numpy as np
import pytest
import torch

from cjepa.visualization.attention import attention_colours, attention_maps, attention_shares, peak
from cjepa.visualization.montage import enlarged, framed, map_montage, neighbour_montage, neighbours_of, strip, tiled
from cjepa.visualization.similarity import as_bytes, coarser, images_within, patch_similarity


def plain(count, height=4, width=6):
    """Images of one grey each: 10, 20, ..."""
    return (10 * np.arange(1, count + 1, dtype=np.uint8))[:, None, None, None] * np.ones(
        (1, height, width, 3), np.uint8
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_strip_is_read_from_above():
    assert strip(plain(3))[[0, 4, 8, 11], 0, 0].tolist() == [10, 20, 30, 30]


def test_tiles_stand_in_rows_with_gaps_that_show_what_is_behind():
    canvas = tiled(plain(5), 2)
    assert canvas.shape == (3 * 4 + 2 * 3, 2 * 6 + 3, 4)
    assert canvas[[0, 0, 7, 7, 14], [0, 9, 0, 9, 0], 0].tolist() == [10, 20, 30, 40, 50]
    assert canvas[0, 7, 3] == 0
    assert canvas[14, 9, 3] == 0, "the last place is empty"


def test_small_images_are_enlarged_by_whole_factors():
    assert enlarged(plain(1), 48).shape == (1, 32, 48, 3)
    assert enlarged(plain(1, 100, 90), 48).shape == (1, 100, 90, 3)


def test_frames_differ_in_more_than_colour():
    same = framed(plain(3, 12, 12), np.array([1, 0, -1]))
    assert (same[:, 3:-3, 3:-3] == plain(3, 12, 12)).all()
    rims = [{tuple(pixel) for pixel in image[0].tolist()} for image in same]
    assert [len(rim) for rim in rims] == [1, 2, 1], "the frame of another class is broken"


def test_neighbours_leave_the_query_out_and_begin_with_the_nearest():
    angle = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.1, 4.0])
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = neighbours_of(circle - circle.mean(0), np.array([0, 3]), 2)
    assert found.tolist() == [[1, 2], [4, 5]] or found[:, 0].tolist() == [1, 4]
    copies = torch.ones(4, 3)
    assert all(query not in row for query, row in enumerate(neighbours_of(copies, np.arange(4), 3)))
    assert neighbours_of(random(2, 3), np.array([0, 1]), 5).tolist() == [[1], [0]]


def test_a_row_of_neighbours_begins_with_its_query():
    images = torch.from_numpy(plain(4, 48, 48).transpose(0, 3, 1, 2).copy())
    montage = neighbour_montage(images, np.array([2]), np.array([[0, 3]]), np.array([[1, 0]]))
    assert montage[25, [25, 57 + 12 + 25, 57 + 12 + 57 + 25], 0].tolist() == [30, 10, 40]


def test_the_map_places_images_by_their_components():
    images = torch.from_numpy(plain(4, 32, 32).transpose(0, 3, 1, 2).copy())
    corners = torch.tensor([[-2.0, -1.0], [-2.0, 1.0], [2.0, -1.0], [2.0, 1.0]])
    montage, shares = map_montage(corners, images)
    assert shares[0] == pytest.approx(0.8)
    left, right = montage[:, :32], montage[:, -33:-1]
    assert {*np.unique(left[..., 0][left[..., 3] > 0])} == {10, 20}
    assert {*np.unique(right[..., 0][right[..., 3] > 0])} == {30, 40}
    assert left[0, 0, 0] == 20, "the second component points upwards"
    montage, _ = map_montage(torch.ones(4, 3), images)
    assert montage.shape == (33, 33, 4), "equal embeddings: one picture"


def test_attention_is_scaled_for_each_image():
    received = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    shares = attention_shares(received, (2, 2))
    np.testing.assert_allclose(shares[0], [[0, 1 / 3], [2 / 3, 1]], atol=1e-6)
    assert (shares[1] == 0).all()
    colours = attention_colours(received, (2, 2))
    assert colours.dtype == np.uint8
    brightness = colours[0].sum(axis=-1).flatten()
    assert (np.diff(brightness.astype(int)) > 0).all(), "more attention is brighter"
    assert peak(received) == pytest.approx((1.6 + 1.0) / 2)
    with pytest.raises(AssertionError, match="no grid"):
        attention_shares(received, (3, 2))


def test_the_attention_figure_has_a_row_for_each_encoder():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    figure = attention_maps(images, {"target": torch.rand(2, 4), "context": torch.rand(2, 4)}, 4)
    assert len(figure.axes) == 6
    assert "peak" in figure.axes[2].texts[1].get_text()


def test_similarity_is_the_cosine_of_centred_patches():
    features = random(2, 6, 5) + 100
    similarity = patch_similarity(features)
    centred = (features - features.mean(dim=(0, 1))).double().numpy()
    one, other = centred[1, 2], centred[1, 4]
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert similarity[1, 2, 4] == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(similarity.diagonal(dim1=1, dim2=2), torch.ones(2, 6))
    coded = as_bytes(similarity)
    assert coded[0, 0, 0] == 254
    assert (coded.float() / 127 - 1 - similarity).abs().max() <= 1 / 254 + 1e-6


def test_fine_grids_become_coarser():
    features = random(1, 64 * 32, 3)
    smaller, grid = coarser(features, (64, 32))
    assert grid == (32, 32)
    torch.testing.assert_close(smaller[0, 0], features[0, [0, 32]].mean(0))
    assert coarser(features, (32, 64))[1] == (32, 32)
    same, grid = coarser(random(1, 6, 3), (2, 3))
    assert (same.shape, grid) == ((1, 6, 3), (2, 3))
    assert images_within((32, 32), 3 * 2**20) == 3
    assert images_within((32, 32), 5) == 1
