"""Retrieval of crops and of classes: known scores, and a brute force."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cjepa.errors import InputError
from cjepa.evaluation import retrieval
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.retrieval import RetrievalConfig, crop_retrieval, retrieval_recall


def pairs(noise: float, n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(n, 16, generator=generator) + 10
    first, second = (content + noise * torch.randn(n, 16, generator=generator) for _ in range(2))
    return first, second


def test_perfect_features() -> None:
    first, _ = pairs(0)
    assert crop_retrieval(first, first) == 100
    assert crop_retrieval(first, 2 * first - first.mean(0)) == 100  # the length does not matter


def test_random_features_score_chance() -> None:
    first, _ = pairs(0, n=2000)
    assert crop_retrieval(first, first[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]) < 0.3


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_collapsed_features_score_exactly_chance(noise: float) -> None:
    first = torch.ones(40, 4) + noise * pairs(0, n=40)[0][:, :4]
    assert crop_retrieval(first, first) == pytest.approx(100 / 40)


def test_equals_a_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pairs(1.0)
    mean = torch.cat([first, second]).double().mean(0)
    right = [
        int(cosine_similarity((query - mean)[None], second.double() - mean).argmax()) == index
        for index, query in enumerate(first.double())
    ]
    assert 20 < 100 * sum(right) / 300 < 90
    assert crop_retrieval(first, second) == pytest.approx(100 * sum(right) / 300)
    monkeypatch.setattr(retrieval, "_CHUNK_ELEMENTS", 300 * 7)
    assert crop_retrieval(first, second) == pytest.approx(100 * sum(right) / 300)


def test_one_image_is_refused() -> None:
    with pytest.raises(InputError, match="at least two images"):
        crop_retrieval(torch.ones(1, 3), torch.ones(1, 3))


def labelled(seed: int = 0) -> LabelledFeatures:
    random = np.random.default_rng(seed)
    labels = [np.arange(count) % 4 for count in (80, 40)]
    centres = random.normal(size=(4, 8))
    features = [torch.from_numpy(centres[each] + random.normal(size=(len(each), 8)) + 3).float() for each in labels]
    return LabelledFeatures(
        features[0], torch.from_numpy(labels[0]), features[1], torch.from_numpy(labels[1]), tuple("abcd")
    )


@pytest.mark.parametrize("centre", [True, False])
def test_recall_equals_a_literal_count(centre: bool) -> None:
    data = labelled()
    train, test = data.train.double().numpy(), data.test.double().numpy()
    shift = train.mean(0) if centre else 0
    train, test = train - shift, test - shift
    values = retrieval_recall(RetrievalConfig(k=(1, 3, 7), centre=centre), data)
    for k in (1, 3, 7):
        hits = 0
        for query, label in zip(test, data.test_labels.tolist(), strict=True):
            similarity = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in train]
            hits += label in data.train_labels[np.argsort(similarity)[::-1][:k].copy()].tolist()
        assert values[f"retrieval_recall_{k}"] == pytest.approx(100 * hits / len(test))
    assert 20 < values["retrieval_recall_1"] < values["retrieval_recall_7"]


def test_random_features_find_their_class_by_chance() -> None:
    noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2000) % 4
    data = LabelledFeatures(noise[:2000], labels, noise[2000:], labels, tuple("abcd"))
    values = retrieval_recall(RetrievalConfig(k=(1, 5)), data)
    assert values["retrieval_recall_1"] == pytest.approx(25, abs=4)
    assert values["retrieval_recall_5"] == pytest.approx(100 * (1 - 0.75**5), abs=4)


def test_more_neighbours_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="only 80 training images"):
        retrieval_recall(RetrievalConfig(k=(81,)), labelled())
