"""Evaluations of a finished run, as the ranks of the tests do them."""

import signal
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

import cjepa.evaluation.labelled as place
from cjepa.data import EvaluationImages
from cjepa.errors import CjepaError, InputError, StoppedEarly
from cjepa.evaluation import Evaluation
from cjepa.evaluation.features import extract_features
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.linear_sgd import LinearSgdConfig
from cjepa.evaluation.pooling import PoolingConfig
from cjepa.evaluation.retrieval import RetrievalConfig
from cjepa.ranks import rank
from cjepa.runs import evaluate_run

QUICK: list[Evaluation] = [
    KnnConfig(k=(1, 3)),
    LinearConfig(inverse_regularisation=(0.1,), pooling=PoolingConfig(layers=2)),
    RetrievalConfig(k=(1, 2)),
    LinearSgdConfig(optimizer="sgd", epochs=1, batch_size=16, rates=(0.1, 1.0)),
]
"""Three whose features are extracted in shares, and one that a single process trains."""


@dataclass(frozen=True)
class Found:
    """What a rank was told, and how many images went through an encoder on it."""

    values: list[dict[str, float]]
    error: str | None
    images: int


def interrupted(run: Path) -> str:
    """What a rank is told when the second one gets a signal while it extracts features."""

    def extract(*arguments: object, **options: object) -> Tensor:
        if rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return extract_features(*arguments, **options)  # type: ignore[arg-type]

    with patch.object(place, "extract_features", extract):
        try:
            evaluate_run(run, QUICK, device="cpu")
        except StoppedEarly as stopped:
            return str(stopped)
    return "not stopped"


def evaluated(run: Path, evaluations: list[Evaluation], failing: int | None = None) -> Found:
    """The values of a run; `failing`: the rank on which the extraction of features fails."""
    seen = 0

    def watched(encoder: object, images: EvaluationImages, *arguments: object, **options: object) -> Tensor:
        nonlocal seen
        if rank() == failing:
            raise InputError("the second machine has no such image")
        seen += len(images)
        return extract_features(encoder, images, *arguments, **options)  # type: ignore[arg-type]

    with patch.object(place, "extract_features", watched):
        try:
            return Found([each.values for each in evaluate_run(run, evaluations, device="cpu")], None, seen)
        except CjepaError as error:
            return Found([], str(error), seen)
