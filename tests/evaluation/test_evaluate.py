"""The list of evaluations: every variant of the union runs and gives named percentages."""

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from cjepa.evaluation import EvaluationConfig, FeatureEvaluation, KnnConfig, LabelledFeatures, LinearConfig, evaluate

VARIANTS = get_args(FeatureEvaluation)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_evaluation_gives_percentages(variant: type[FeatureEvaluation]) -> None:
    labels = torch.arange(90) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    data = LabelledFeatures(features[:60], labels[:60], features[60:], labels[60:], ("a", "b", "c"))
    values = evaluate(variant(), data)
    assert values
    for name, value in values.items():
        assert name.startswith(variant().name)
        assert 0 <= value < 10 if name.endswith("_std") else 90 < value <= 100


def test_the_name_selects_the_evaluation() -> None:
    adapter: TypeAdapter[KnnConfig | LinearConfig] = TypeAdapter(EvaluationConfig)
    assert adapter.validate_python({"name": "knn", "k": [5]}) == KnnConfig(k=(5,))
    assert adapter.validate_python({"name": "linear"}) == LinearConfig()
    with pytest.raises(ValidationError):
        adapter.validate_python({"name": "guess"})
