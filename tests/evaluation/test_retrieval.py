"""Crop-to-crop retrieval: known scores, and a brute force."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cjepa.errors import InputError
from cjepa.evaluation import retrieval
from cjepa.evaluation.retrieval import crop_retrieval


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
