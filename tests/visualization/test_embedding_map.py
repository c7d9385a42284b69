import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cjepa.visualization import Pool, embedding_map, save
from cjepa.visualization.components import principal_components
from cjepa.visualization.embedding_map import cells


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pool(count=12, labels=None, height=4, width=6, **features):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, height, width)
    labels = np.full(count, -1) if labels is None else np.array(labels)
    return Pool(images, labels, features or {"encoder": random(count, 5)})


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 8))
def test_each_cell_with_points_is_represented_by_the_nearest_to_its_centre(seed, points, count):
    positions = np.random.default_rng(seed).normal(size=(points, 2))
    chosen, centres, side = cells(positions, count)
    inside = (np.abs(positions[:, None] - centres) <= side / 2 + 1e-9).all(axis=2)
    assert inside.any(axis=1).all()
    for index, centre, own in zip(chosen, centres, inside.T, strict=True):
        distances = np.linalg.norm(positions - centre, axis=1)
        assert distances[index] == distances[own].min()
    apart = np.abs(centres[:, None] - centres).max(axis=2) + np.eye(len(centres)) * side
    assert (apart > 0.99 * side).all()


def test_a_map_for_each_encoder_with_the_variance_it_shows(tmp_path):
    features = random(12, 5)
    figure = embedding_map(pool(first=features, second=random(12, 9, seed=1)))
    assert len(figure.axes) == 2
    _, shares = principal_components(features, 2)
    expected = f"first\n{100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of the variance"
    assert figure.axes[0].get_title(loc="left") == expected
    save(figure, tmp_path / "map.png")


def test_thumbnails_stand_where_their_embeddings_lie():
    drawn = embedding_map(pool()).axes[0].images
    scores, _ = principal_components(random(12, 5), 2)
    side = np.ptp(scores, axis=0).max() / 6
    assert len(drawn) > 4
    for thumbnail in drawn:
        left, right, bottom, top = thumbnail.get_extent()
        index = int(thumbnail.get_array()[0, 0, 0])
        assert np.abs(np.array([left + right, bottom + top]) / 2 - scores[index]).max() <= side / 2 + 1e-9
        assert (right - left) / (top - bottom) == pytest.approx(6 / 4)


def test_images_of_one_embedding_share_one_small_thumbnail(tmp_path):
    figure = embedding_map(pool(collapsed=torch.ones(12, 4)))
    (thumbnail,) = figure.axes[0].images
    left, right, _, _ = thumbnail.get_extent()
    low, high = figure.axes[0].get_xlim()
    assert (right - left) < 0.1 * (high - low)
    save(figure, tmp_path / "map.png")


def test_classes_differ_in_colour_or_shape(tmp_path):
    names = tuple(f"class {number}" for number in range(25))
    figure = embedding_map(pool(count=50, labels=list(range(25)) * 2), names, show="classes")
    marks = {(handle.get_color(), handle.get_marker()) for handle in figure.legends[0].legend_handles}
    assert len(marks) == 25
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 50
    save(figure, tmp_path / "map.png")


def test_images_without_labels_are_named_so_and_absent_classes_are_not():
    figure = embedding_map(pool(count=3, labels=[-1, 0, 2]), ("a", "b", "c"), show="classes")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no label", "a", "c"]


def test_too_many_classes_are_not_listed():
    names = tuple(str(number) for number in range(40))
    figure = embedding_map(pool(count=40, labels=range(40)), names, show="classes")
    assert figure.legends == []
    assert "40 classes" in figure.get_supxlabel()


def test_t_sne_is_the_same_each_time_and_says_what_it_is():
    figures = [embedding_map(pool(), method="tsne") for _ in range(2)]
    first, second = ([image.get_extent() for image in figure.axes[0].images] for figure in figures)
    assert first == second
    assert figures[0].get_suptitle() == "Map of the pooled embeddings of 12 images: t-SNE"
    assert figures[0].axes[0].get_title(loc="left") == "encoder\nperplexity 4"


@pytest.mark.parametrize("count", [1, 2])
def test_very_few_images(count, tmp_path):
    save(embedding_map(pool(count=count)), tmp_path / "map.png")
