"""The linear evaluation against scikit-learn's logistic regression, and its known scores."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.linear import LinearConfig, linear_accuracy, validation_images


@cache
def digits() -> LabelledFeatures:
    """The digits stored in scikit-learn, 64 pixels, some of them constant; every third image is for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.data).float(), torch.from_numpy(data.target).long()
    test = torch.arange(len(images)) % 3 == 0
    return LabelledFeatures(images[~test], labels[~test], images[test], labels[test], tuple("0123456789"))


def scikit_learn(features: LabelledFeatures) -> float:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own notices of changing defaults
        model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=5, cv=3, max_iter=300))
        model.fit(features.train.numpy(), features.train_labels.numpy())
        return 100 * float(model.score(features.test.numpy(), features.test_labels.numpy()))


def test_reaches_scikit_learn_on_digits() -> None:
    reference = scikit_learn(digits())
    assert reference > 94
    assert linear_accuracy(LinearConfig(), digits())["linear"] > reference - 1


def nearly_collinear(features: LabelledFeatures) -> LabelledFeatures:
    """The same content below one large common part, as in an untrained encoder; merely standardised, it scores 87 %."""
    width = features.train.shape[1]
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    common = torch.randn(width, 1, generator=generator) @ torch.ones(1, width) / 8
    mix = (0.03 * rotation + common) / features.train.std(0).clamp(min=0.1).view(-1, 1)
    return LabelledFeatures(
        features.train @ mix, features.train_labels, features.test @ mix, features.test_labels, features.classes
    )


def test_is_not_limited_by_the_optimiser_on_nearly_collinear_features() -> None:
    plain = linear_accuracy(LinearConfig(), digits())["linear"]
    assert linear_accuracy(LinearConfig(), nearly_collinear(digits()))["linear"] > plain - 1.5


def test_chooses_the_regularisation_on_the_validation_share() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1] * 40)
    points = labels.view(-1, 1) + 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    features = LabelledFeatures(points, labels, points, labels, ("a", "b"))
    # Regularised away, only the intercept is left: everything is of the larger class.
    assert linear_accuracy(LinearConfig(inverse_regularisation=(1e-5,)), features)["linear"] == 80
    assert linear_accuracy(LinearConfig(inverse_regularisation=(1.0, 1e-5)), features)["linear"] == 100


def test_perfect_and_random_features() -> None:
    labels = torch.arange(1000) % 5
    classes = tuple("abcde")
    perfect = torch.eye(5)[labels]
    assert linear_accuracy(LinearConfig(), LabelledFeatures(perfect, labels, perfect, labels, classes)) == {
        "linear": 100.0
    }
    noise = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    random = LabelledFeatures(noise[:1000], labels, noise[1000:], labels, classes)
    assert linear_accuracy(LinearConfig(), random)["linear"] == pytest.approx(20, abs=5)  # 4 standard deviations


def test_two_classes_and_a_class_of_one_image() -> None:
    features = torch.tensor([[0.0], [0.1], [0.2], [0.9], [1.0], [1.1], [5.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    two = LabelledFeatures(features[:6], labels[:6], features[:6], labels[:6], ("a", "b"))
    assert linear_accuracy(LinearConfig(), two)["linear"] == 100
    three = LabelledFeatures(features, labels, features, labels, ("a", "b", "c"))
    assert linear_accuracy(LinearConfig(inverse_regularisation=(1.0, 100.0)), three)["linear"] > 80


def test_constant_features_score_the_largest_class() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    for noise in (0.0, 1e-7):
        features = torch.ones(40, 3) + noise * labels.view(-1, 1)
        value = linear_accuracy(LinearConfig(), LabelledFeatures(features, labels, features, labels, ("a", "b")))
        assert value == {"linear": 75.0}


def test_an_early_stop_is_silent_and_usable() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = linear_accuracy(LinearConfig(max_iterations=2), digits())["linear"]
    assert value > 50


def test_is_deterministic() -> None:
    assert linear_accuracy(LinearConfig(), digits()) == linear_accuracy(LinearConfig(), digits())


def test_the_validation_choice_is_stratified() -> None:
    labels = np.array([0] * 100 + [1] * 10 + [2] * 2 + [3])
    held_out = validation_images(labels, 0.1)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 1, 1, 0]
    assert not held_out[:10].all(), "the first images would be one photograph or one camera"


def test_single_images_are_refused_unless_nothing_is_to_choose() -> None:
    features = LabelledFeatures(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), tuple("abc"))
    with pytest.raises(InputError, match=r"single training image.*at least two images"):
        linear_accuracy(LinearConfig(), features)
    assert linear_accuracy(LinearConfig(inverse_regularisation=(1.0,)), features)["linear"] == 100


@pytest.mark.parametrize(
    "bad", [{"inverse_regularisation": ()}, {"inverse_regularisation": (-1,)}, {"validation_share": 0}, {"C": 1}]
)
def test_nonsense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LinearConfig.model_validate(bad)
