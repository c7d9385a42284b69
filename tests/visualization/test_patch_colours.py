import numpy as np
import pytest
import torch

from cjepa.visualization import common_colours, patch_colours, pca_colours, save
from cjepa.visualization.components import principal_components, turn_onto


def features(count=3, patches=6, width=10, seed=0):
    return torch.randn(count, patches, width, generator=torch.Generator().manual_seed(seed))


def test_features_of_rank_one_vary_in_red_only():
    coefficients = torch.arange(12.0).reshape(2, 6)
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0])
    colours = pca_colours(coefficients[..., None] * direction + 3.0, (2, 3))
    assert colours.shape == (2, 2, 3, 3)
    low, high = np.percentile(np.arange(12), [1, 99])
    # The sign makes the largest loading, that of -2, positive: the red falls as the coefficient rises.
    expected = 255 * (1 - ((np.arange(12) - low) / (high - low)).clip(0, 1))
    np.testing.assert_allclose(colours[..., 0].ravel(), expected, atol=0.51)
    assert (colours[..., 1:] == 128).all()


def test_equal_features_have_equal_colours_in_different_images():
    of_images = features()
    of_images[2, 4] = of_images[0, 1]
    colours = pca_colours(of_images, (2, 3)).reshape(3, 6, 3)
    np.testing.assert_array_equal(colours[2, 4], colours[0, 1])


def test_the_basis_is_that_of_all_images_together():
    of_images = features()
    together = pca_colours(of_images, (2, 3))
    assert (together[:1] != pca_colours(of_images[:1], (2, 3))).any()
    order = [2, 0, 1]
    np.testing.assert_array_equal(pca_colours(of_images[order], (2, 3)), together[order])


def test_three_known_directions_become_red_green_and_blue():
    scores = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    scores = torch.linalg.qr(scores - scores.mean(0))[0] * torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)))[0]
    colours = pca_colours((scores @ basis.T).view(4, 100, 8), (10, 10)).reshape(-1, 3)
    for channel in range(3):
        correlation = np.corrcoef(colours[:, channel], scores[:, channel])[0, 1]
        assert abs(correlation) > 0.99


def test_the_range_is_robust_against_a_single_patch():
    of_images = features(count=1, patches=900)
    plain = pca_colours(of_images, (30, 30))
    of_images[0, 0] *= 100
    assert pca_colours(of_images, (30, 30))[..., 0].std() > 0.5 * plain[..., 0].std()


@pytest.mark.parametrize("constant", [torch.zeros(2, 6, 5), torch.full((2, 6, 5), 7.3), torch.ones(1, 1, 4)])
def test_features_that_do_not_vary_are_grey(constant):
    grid = (2, 3) if constant.shape[1] == 6 else (1, 1)
    assert (pca_colours(constant, grid) == 128).all()


def test_fewer_features_than_colours():
    colours = pca_colours(features(width=2), (2, 3))
    assert colours[..., 1].std() > 0
    assert (colours[..., 2] == 128).all()


def another_encoder(of_images, seed=5):
    """The three main directions of some features, mixed, scaled and laid into 7 other dimensions."""
    scores, _ = principal_components(of_images.flatten(0, 1), 3)
    random = np.random.default_rng(seed)
    mixed = scores / scores.std(axis=0) @ random.normal(size=(3, 3)) @ random.normal(size=(3, 7)) + 4.0
    return torch.from_numpy(mixed).view(*of_images.shape[:2], 7)


def test_the_same_content_has_the_same_colour_in_another_encoder():
    first = features(count=5)
    one, other = common_colours([first, another_encoder(first)], (2, 3))
    assert (one.agreement, other.agreement) == pytest.approx((1.0, 1.0))
    assert np.abs(one.pictures.astype(int) - other.pictures).max() <= 1
    alone = pca_colours(another_encoder(first), (2, 3))
    assert np.abs(alone.astype(int) - other.pictures).max() > 50, "without the common frame colours differ"


def test_unrelated_encoders_agree_little_and_keep_their_own_structure():
    first, second = features(count=20, patches=24), features(count=20, patches=24, seed=9)
    _, other = common_colours([first, second], (4, 6))
    assert 0 < other.agreement < 0.25
    second[3, 2] = second[7, 5]
    _, other = common_colours([first, second], (4, 6))
    np.testing.assert_array_equal(other.pictures[3, 0, 2], other.pictures[7, 0, 5])


def test_only_the_same_images_are_brought_together():
    """The first encoder has four images, the other two of them and one of its own."""
    first = features(count=4, patches=24)
    own = features(count=1, patches=24, seed=3)
    whole = another_encoder(torch.cat([first, own]))
    chosen = whole[[3, 1, 4]]
    _, other = common_colours([first, chosen], (4, 6), [[(i, i) for i in range(4)], [(3, 0), (1, 1)]])
    assert other.agreement > 0.8
    _, wrong = common_colours([first, chosen], (4, 6), [[(i, i) for i in range(4)], [(0, 0), (2, 1)]])
    assert wrong.agreement < 0.5


def test_the_turn_is_that_of_scipy_and_changes_no_distance():
    from scipy.linalg import orthogonal_procrustes

    random = np.random.default_rng(0)
    own, reference = random.normal(size=(2, 50, 3))
    rotation, agreement = turn_onto(own, reference)
    centred = [each - each.mean(axis=0) for each in (own, reference)]
    expected, _ = orthogonal_procrustes(*centred)
    np.testing.assert_allclose(rotation, expected, atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    flat = [(centred[0] @ rotation).ravel(), centred[1].ravel()]
    assert agreement == pytest.approx(np.corrcoef(flat[0], flat[1])[0, 1])
    assert turn_onto(np.zeros((4, 3)), reference[:4])[1] == 0.0


def test_half_precision_features():
    np.testing.assert_array_equal(
        pca_colours(features().bfloat16(), (3, 2)), pca_colours(features().bfloat16().float(), (3, 2))
    )


def test_a_grid_of_other_size_is_refused():
    with pytest.raises(AssertionError, match="6 patches are no grid of 2 x 2"):
        pca_colours(features(), (2, 2))


def test_components_equal_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    data = features(count=1, patches=50)[0]
    scores, shares = principal_components(data, 4)
    reference = PCA(4).fit(data.double().numpy())
    np.testing.assert_allclose(np.abs(scores), np.abs(reference.transform(data.double().numpy())), atol=1e-9)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_)


def test_a_row_of_pictures_for_each_encoder(tmp_path):
    images = torch.randint(0, 256, (3, 3, 8, 12), dtype=torch.uint8)
    of_encoders = {"untrained": features(), "I-JEPA": features(width=20), "C-JEPA": features(seed=1)}
    figure = patch_colours(images, of_encoders, patch_size=4, upsampling="bilinear")
    assert len(figure.axes) == 12
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), images[1].permute(1, 2, 0))
    colours = common_colours(list(of_encoders.values()), (2, 3))
    np.testing.assert_array_equal(figure.axes[10].images[0].get_array(), colours[2].pictures[1])
    assert figure.axes[10].images[0].get_interpolation() == "bilinear"
    assert figure.get_supxlabel() == (
        "One basis for a whole row of 3 images; rows are turned onto that of untrained, r: how well that fits; "
        "bilinear upsampling."
    )
    _, shares = principal_components(of_encoders["I-JEPA"].flatten(0, 1), 3)
    labels = [text.get_text() for text in figure.axes[6].texts]
    assert labels == ["I-JEPA", f"{100 * shares.sum():.0f} % of variance, r {colours[1].agreement:.2f}"]
    save(figure, tmp_path / "patches.png")


def test_images_that_are_not_shown_count_for_the_basis():
    images = torch.zeros(10, 3, 8, 12, dtype=torch.uint8)
    of_images = features(count=10)
    figure = patch_colours(images, {"encoder": of_images}, patch_size=4)
    assert len(figure.axes) == 16
    np.testing.assert_array_equal(figure.axes[8].images[0].get_array(), pca_colours(of_images, (2, 3))[0])
