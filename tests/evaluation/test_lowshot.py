"""Low-shot classification: against scikit-learn on the same choice, and its known scores."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from cjepa.errors import InputError
from cjepa.evaluation import lowshot
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.knn import Centre, directions
from cjepa.evaluation.lowshot import LowshotConfig, lowshot_accuracy
from cjepa.evaluation.storage import row_blocks


def clusters(train: int = 300, test: int = 150, classes: int = 3, noise: float = 1.0) -> LabelledFeatures:
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, 16))
    labels = [np.arange(count) % classes for count in (train, test)]
    features = [centres[each] + noise * random.normal(size=(len(each), 16)) + 2 for each in labels]
    parts = [torch.from_numpy(part) for pair in zip(features, labels, strict=True) for part in pair]
    return LabelledFeatures(parts[0].float(), parts[1], parts[2].float(), parts[3], tuple("abc"))


def test_equals_scikit_learn_on_the_same_images() -> None:
    data = clusters()
    config = LowshotConfig(shares=(0.1,), per_class=(4,), max_iterations=1000)
    train = data.train.double().numpy()
    test = data.test.double().numpy() - train.mean(0)
    train = train - train.mean(0)
    train, test = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, test))
    labels = data.train_labels.numpy()
    values = lowshot_accuracy(config, data)
    for name, count in (("lowshot_10_percent", 10), ("lowshot_4_per_class", 4)):
        accuracies = []
        for draw in range(3):
            chosen = lowshot._choice(labels, dict.fromkeys(range(3), count), draw)
            assert np.bincount(labels[chosen]).tolist() == [count] * 3
            fitted = LogisticRegression(C=1000 / len(chosen), max_iter=1000).fit(train[chosen], labels[chosen])
            accuracies.append(100 * fitted.score(test, data.test_labels.numpy()))
        assert values[name] == pytest.approx(np.mean(accuracies), abs=0.7)  # one test image of 150
        assert values[f"{name}_std"] == pytest.approx(np.std(accuracies, ddof=1), abs=0.7)


def test_more_labels_contain_fewer_and_draws_differ() -> None:
    labels = np.arange(60) % 3
    few, many = (lowshot._choice(labels, dict.fromkeys(range(3), count), 0) for count in (2, 9))
    assert set(few) < set(many)
    assert set(few) != set(lowshot._choice(labels, dict.fromkeys(range(3), 2), 1))


def test_perfect_and_random_features() -> None:
    labels = torch.arange(900) % 3
    perfect = torch.eye(3)[labels]
    values = lowshot_accuracy(LowshotConfig(), LabelledFeatures(perfect, labels, perfect, labels, tuple("abc")))
    assert {value for name, value in values.items() if not name.endswith("_std")} == {100.0}
    noise = torch.randn(1800, 8, generator=torch.Generator().manual_seed(0))
    random = LabelledFeatures(noise[:900], labels, noise[900:], labels, tuple("abc"))
    for name, value in lowshot_accuracy(LowshotConfig(), random).items():
        assert value < 5 if name.endswith("_std") else value == pytest.approx(100 / 3, abs=5)


def test_features_on_the_disk_are_never_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = clusters(), LowshotConfig(shares=(0.1,), per_class=(4,))
    expected, rows = lowshot_accuracy(config, data), []

    def recorded(features: Tensor, centre: Centre | None) -> Tensor:
        rows.append(len(features))
        return directions(features, centre)

    monkeypatch.setattr(lowshot, "directions", recorded)
    monkeypatch.setattr(lowshot, "row_blocks", lambda features: row_blocks(features, 16 * 40))
    assert lowshot_accuracy(config, data) == expected
    assert max(rows) <= 40
    assert sum(rows) == 3 * (30 + 150) + 3 * (12 + 150), "labelled and test images of every draw"


def test_too_few_images_of_a_class() -> None:
    with pytest.raises(InputError, match="class a has fewer than 200 training images; ask for fewer"):
        lowshot_accuracy(LowshotConfig(per_class=(200,)), clusters())


def test_nothing_asked_for() -> None:
    with pytest.raises(ValidationError, match="both empty"):
        LowshotConfig(shares=(), per_class=())
