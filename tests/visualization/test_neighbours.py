import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from cjepa.visualization import Pool, nearest, nearest_neighbours, save
from cjepa.visualization.neighbours import agreement
from cjepa.visualization.style import FAINT, RIGHT, WRONG


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pool(count, labels=None, encoders=("a", "b"), height=4, width=6, seed=0):
    images = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    labels = np.full(count, -1) if labels is None else np.array(labels)
    features = {name: random(count, 5 + index, seed=index) for index, name in enumerate(encoders)}
    return Pool(images.to(torch.uint8), labels, features)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 12), st.integers(1, 14))
def test_neighbours_are_those_of_brute_force(seed, queries, gallery, count):
    query, key = random(queries, 3, seed=seed) + 5, random(gallery, 3, seed=seed + 1) + 5
    mean = key.double().mean(0)
    for row, found in enumerate(nearest(query, key, count)):
        similarity = torch.cosine_similarity(query[row].double() - mean, key.double() - mean)
        assert found.tolist() == sorted(range(gallery), key=lambda index: -similarity[index])[:count]


def test_equally_near_ones_keep_their_order():
    gallery = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([[2.0, 0.0]]), gallery, 4).tolist() == [[1, 2, 0, 3]]


def test_the_mean_is_taken_away():
    gallery = torch.tensor([[10.0, 1.0], [10.0, -1.0], [13.0, 0.0], [7.0, 0.0]])
    query = torch.tensor([[10.5, 0.01]])
    by_angle = torch.cosine_similarity(query, gallery).argmax()
    assert nearest(query, gallery, 1).tolist() == [[2]]
    assert by_angle != 0


def test_agreement_knows_what_has_no_label():
    found = np.array([[0, 1, -1], [1, 1, 0], [0, 1, -1]])
    assert agreement(np.array([0, 1, -1]), found).tolist() == [[1, 0, -1], [1, 1, 0], [-1, -1, -1]]


def test_take_keeps_images_labels_and_features_together():
    whole = pool(5, labels=range(5))
    some = whole.take(np.array([3, 1]))
    assert some.labels.tolist() == [3, 1]
    assert torch.equal(some.images, whole.images[[3, 1]])
    assert torch.equal(some.features["b"], whole.features["b"][[3, 1]])


def test_each_query_has_its_neighbours_under_each_encoder(tmp_path):
    queries, gallery = pool(3, [0, 1, 0], seed=1), pool(7, [0, 1, 1, 0, 1, 0, 1])
    figure = nearest_neighbours(queries, gallery, ("cat", "dog"), count=4)
    assert len(figure.axes) == 3 + 2 * 3 * 4
    found = nearest(queries.features["b"], gallery.features["b"], 4)
    shown = [axes.images[0].get_array() for axes in figure.axes[3 + 12 :]]
    expected = gallery.images[torch.from_numpy(found.ravel())].permute(0, 2, 3, 1)
    np.testing.assert_array_equal(np.stack(shown), expected)
    save(figure, tmp_path / "neighbours.png")


def test_frames_tell_right_from_wrong_in_colour_and_in_line():
    queries, gallery = pool(1, [0], encoders=("a",)), pool(5, [0, 1, 1, 0, -1], encoders=("a",))
    figure = nearest_neighbours(queries, gallery, ("cat", "dog"), count=5)
    order = nearest(queries.features["a"], gallery.features["a"], 5)[0]
    for axes, label in zip(figure.axes[1:], gallery.labels[order], strict=True):
        frame = axes.spines["left"]
        assert frame.get_visible()
        assert to_hex(frame.get_edgecolor()) == {0: RIGHT, 1: WRONG, -1: FAINT}[int(label)].lower()
        assert (frame.get_linestyle() in ("-", "solid")) == (label != 1)


def test_the_heading_counts_neighbours_of_the_same_class():
    queries, gallery = pool(2, [0, -1], encoders=("a",)), pool(4, [0, 1, 0, -1], encoders=("a",))
    figure = nearest_neighbours(queries, gallery, ("cat", "dog"), count=4)
    heading = [text.get_text() for text in figure.axes[2].texts]
    assert heading == ["a", "same class: 2 of 3 labelled"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat", "query", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["same class", "another class", "no label"]


def test_nothing_is_said_of_missing_labels_where_none_is_missing():
    queries, gallery = pool(2, [0, 1], encoders=("a",)), pool(4, [0, 1, 0, 1], encoders=("a",))
    figure = nearest_neighbours(queries, gallery, ("cat", "dog"), count=4)
    assert figure.axes[2].texts[1].get_text() == "same class: 4 of 8"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["same class", "another class"]


def test_without_labels_there_are_neither_frames_nor_counts(tmp_path):
    figure = nearest_neighbours(pool(2), pool(6), ())
    assert figure.legends == []
    assert not any(axes.spines["left"].get_visible() for axes in figure.axes)
    assert "class" not in "".join(text.get_text() for axes in figure.axes for text in axes.texts)
    save(figure, tmp_path / "neighbours.png")


@pytest.mark.parametrize(("height", "width"), [(4, 12), (12, 4)])
def test_a_gallery_smaller_than_asked_and_odd_images(height, width, tmp_path):
    queries = pool(1, [0], encoders=("one", "two", "three", "four"), height=height, width=width)
    gallery = pool(2, [0, 0], encoders=("one", "two", "three", "four"), height=height, width=width)
    figure = nearest_neighbours(queries, gallery, ("a $name_ that is rather long {",), count=5)
    assert figure.get_suptitle() == "The 2 nearest of 2 images, by cosine similarity of centred embeddings"
    save(figure, tmp_path / "neighbours.png")
