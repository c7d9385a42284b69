import numpy as np
import pytest
import torch

from cjepa.visualization import patch_colours, pca_colours, save
from cjepa.visualization.components import principal_components


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
    np.testing.assert_array_equal(figure.axes[10].images[0].get_array(), pca_colours(of_encoders["C-JEPA"], (2, 3))[1])
    assert figure.axes[10].images[0].get_interpolation() == "bilinear"
    assert figure.get_supxlabel() == "One basis for a whole row of 3 images; bilinear upsampling."
    _, shares = principal_components(of_encoders["I-JEPA"].flatten(0, 1), 3)
    labels = [text.get_text() for text in figure.axes[6].texts]
    assert labels == ["I-JEPA", f"{100 * shares.sum():.0f} % of variance"]
    save(figure, tmp_path / "patches.png")


def test_images_that_are_not_shown_count_for_the_basis():
    images = torch.zeros(10, 3, 8, 12, dtype=torch.uint8)
    of_images = features(count=10)
    figure = patch_colours(images, {"encoder": of_images}, patch_size=4)
    assert len(figure.axes) == 16
    np.testing.assert_array_equal(figure.axes[8].images[0].get_array(), pca_colours(of_images, (2, 3))[0])
