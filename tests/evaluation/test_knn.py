"""k-NN against a float64 brute force and against scikit-learn, and its known scores."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cjepa.evaluation import knn
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.knn import KnnConfig, knn_accuracy


def random_features(seed: int, train: int, test: int, classes: int, width: int = 8) -> LabelledFeatures:
    """Noisy clusters with a large constant part, as pooled features have; every class has a training image."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, width))
    train_labels = np.concatenate([np.arange(classes), generator.integers(classes, size=train - classes)])
    test_labels = generator.integers(classes, size=test)
    return LabelledFeatures(
        *(
            part
            for labels in (train_labels, test_labels)
            for part in (
                torch.from_numpy(centres[labels] + generator.normal(size=(len(labels), width)) + 3).float(),
                torch.from_numpy(labels),
            )
        ),
        tuple(map(str, range(classes))),
    )


def brute_force(features: LabelledFeatures, k: int, temperature: float, centre: bool) -> float:
    train, test = features.train.double().numpy(), features.test.double().numpy()
    shift = train.mean(0) if centre else 0
    train, test = train - shift, test - shift
    right = 0
    for query, label in zip(test, features.test_labels.tolist(), strict=True):
        similarities = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in train]
        votes = np.zeros(len(features.classes))
        for nearest in np.argsort(similarities)[::-1][:k]:
            votes[features.train_labels[nearest]] += np.exp(similarities[nearest] / temperature)
        right += int(votes.argmax() == label)
    return 100 * right / len(test)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    train=st.integers(5, 60),
    classes=st.integers(2, 5),
    k=st.integers(1, 30),
    temperature=st.sampled_from([0.03, 0.07, 1.0]),
)
def test_equals_a_brute_force_in_float64(seed: int, train: int, classes: int, k: int, temperature: float) -> None:
    features = random_features(seed, train, 40, classes)
    values = knn_accuracy(KnnConfig(k=(k, 1), temperature=temperature), features)
    for name, accuracy in values.items():
        neighbours, centred = int(name.split("_")[1]), name.endswith("_centred")
        assert accuracy == pytest.approx(brute_force(features, neighbours, temperature, centred))


def test_equals_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features = random_features(0, 500, 200, 6)
    unit = torch.nn.functional.normalize(features.train), torch.nn.functional.normalize(features.test)
    # cosine distance is 1 - similarity
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    reference.fit(unit[0].numpy(), features.train_labels.numpy())
    accuracy = 100 * reference.score(unit[1].numpy(), features.test_labels.numpy())
    assert 30 < accuracy < 95
    assert knn_accuracy(KnnConfig(centre=False), features)["knn_20"] == pytest.approx(accuracy)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features(1, 100, 37, 4)
    whole = knn_accuracy(KnnConfig(), features)
    monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", 500)
    assert knn_accuracy(KnnConfig(), features) == whole


def test_names_of_the_values() -> None:
    features = random_features(2, 60, 20, 3)
    assert list(knn_accuracy(KnnConfig(), features)) == ["knn_10", "knn_20", "knn_10_centred", "knn_20_centred"]
    assert list(knn_accuracy(KnnConfig(k=(5,), centre=False), features)) == ["knn_5"]


def test_perfect_and_random_features() -> None:
    labels = torch.arange(2000) % 4
    perfect = torch.eye(4)[labels]
    classes = ("a", "b", "c", "d")
    values = knn_accuracy(KnnConfig(), LabelledFeatures(perfect, labels, perfect, labels, classes))
    assert set(values.values()) == {100.0}
    noise = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    values = knn_accuracy(KnnConfig(), LabelledFeatures(noise[:2000], labels, noise[2000:], labels, classes))
    for accuracy in values.values():
        assert accuracy == pytest.approx(25, abs=4)  # 4 binomial standard deviations


def test_centring_uncovers_what_a_constant_part_hides() -> None:
    labels = torch.arange(400) % 2
    constant = torch.ones(8)  # the classes differ only in the length along it, which a cosine cannot see
    noise = 0.2 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    features = (10 + labels).view(-1, 1) * constant + noise
    half = LabelledFeatures(features[:200], labels[:200], features[200:], labels[200:], ("a", "b"))
    values = knn_accuracy(KnnConfig(k=(20,)), half)
    assert values["knn_20_centred"] > 95
    assert values["knn_20"] < 70


def test_a_collapsed_encoder_scores_chance_even_if_its_last_bits_know_the_class() -> None:
    labels = torch.arange(400) % 4
    features = torch.ones(400, 4) + 2e-7 * torch.eye(4)[labels]
    values = knn_accuracy(KnnConfig(k=(20,)), LabelledFeatures(features, labels, features, labels, tuple("abcd")))
    assert values["knn_20_centred"] == 25.0


def test_k_above_the_training_set_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    features = random_features(4, 12, 30, 3)
    with caplog.at_level(logging.WARNING):
        values = knn_accuracy(KnnConfig(k=(12, 50)), features)
    assert values["knn_50"] == values["knn_12"]
    assert "k = 50 is more than the 12 training images" in caplog.text


def test_low_temperatures_do_not_overflow() -> None:
    features = random_features(5, 60, 60, 3)
    cold = knn_accuracy(KnnConfig(k=(20,), temperature=1e-6), features)
    assert cold["knn_20"] == knn_accuracy(KnnConfig(k=(1,)), features)["knn_1"]  # only the nearest one counts


@pytest.mark.parametrize("bad", [{"k": ()}, {"k": (0,)}, {"temperature": 0}, {"neighbours": 3}])
def test_nonsense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KnnConfig.model_validate(bad)
