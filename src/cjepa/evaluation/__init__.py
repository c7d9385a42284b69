"""How good an encoder is: evaluations of frozen, pooled features."""

from typing import Annotated, assert_never

from pydantic import Field

from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.knn import KnnConfig, knn_accuracy
from cjepa.evaluation.linear import LinearConfig, linear_accuracy

EvaluationConfig = Annotated[KnnConfig | LinearConfig, Field(discriminator="name")]


def evaluate(config: KnnConfig | LinearConfig, features: LabelledFeatures) -> dict[str, float]:
    """The named values of one evaluation; accuracies are percent of the test images."""
    match config:
        case KnnConfig():
            return knn_accuracy(config, features)
        case LinearConfig():
            return linear_accuracy(config, features)
        case _:
            assert_never(config)
