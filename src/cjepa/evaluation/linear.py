"""Linear classification of frozen features."""

import logging
import warnings
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field

from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures, constant_dimensions
from cjepa.evaluation.pooling import LAST_LAYER, PoolingConfig
from cjepa.evaluation.whitening import root_of
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Part

_logger = logging.getLogger(__name__)


class LinearConfig(Part):
    """Multinomial logistic regression on the frozen features."""

    name: Literal["linear"] = "linear"
    """Multinomial logistic regression."""
    inverse_regularisation: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-4,
        1e-3,
        1e-2,
        1e-1,
        1.0,
    )
    """Values of C to choose from, in C * (sum of the cross-entropies) + |weights|^2 / 2."""
    validation_share: float = Field(0.1, gt=0, le=0.5)
    """Share of each class's training images that the strength is chosen on."""
    max_iterations: int = Field(100, gt=0)
    """Iterations of L-BFGS for each strength; a fit that is stopped by it is used as it is."""
    pooling: PoolingConfig = LAST_LAYER
    """How patch embeddings become the features of an image."""


def linear_accuracy(config: LinearConfig, features: LabelledFeatures) -> dict[str, float]:
    """Percent of the test images that a linear classifier of the training images gets right: `linear`.

    Features are whitened by the training images. The strength is the one with the highest accuracy on
    the validation share (of equals the smallest C); then the classifier is fitted on all training images.
    Full batch, meant for up to some 100,000 images; raises InputError if no class has two training images.
    """
    train, test = _whitened(features)
    labels = features.train_labels.cpu().numpy()
    strengths = sorted(set(config.inverse_regularisation))
    if len(strengths) > 1:
        held_out = validation_images(labels, config.validation_share)
        scores = _path(config, strengths, train[~held_out], labels[~held_out], train[held_out], labels[held_out])
        best = strengths[int(np.argmax(scores))]
        _logger.info("linear: validation accuracies %s for C = %s; chosen %g", scores, strengths, best)
    else:
        best = strengths[0]
    # From the strongest to the chosen one, as when it was chosen: the same start, so the same stopped fits.
    upto = strengths[: strengths.index(best) + 1]
    return {"linear": _path(config, upto, train, labels, test, features.test_labels.cpu().numpy())[-1]}


def check_strengths(config: LinearConfig, labels: Int[np.ndarray, "n"]) -> None:
    """InputError if there are strengths to choose from, and no class has a second training image to choose on."""
    if len(set(config.inverse_regularisation)) > 1:
        validation_images(labels, config.validation_share)


def _whitened(features: LabelledFeatures) -> tuple[Float[np.ndarray, "n D"], Float[np.ndarray, "m D"]]:
    """Standardised, then decorrelated by the training images' correlations.

    A linear classifier can undo this, so it only changes what the penalty means and how fast L-BFGS arrives; on merely
    standardised features it stops early, which flatters the trained encoder beside the untrained one.
    """
    mean, std = features.train.mean(0), features.train.std(0, correction=0)
    scale = torch.where(constant_dimensions(features.train), torch.inf, std)
    train, test = ((part - mean).div(scale).double() for part in (features.train, features.test))
    root = root_of(train.T @ train / len(train))
    white = (torch.linalg.solve_triangular(root, part.T, upper=False).T for part in (train, test))
    train, test = (part.float().contiguous().cpu() for part in white)
    return train.numpy(), test.numpy()


def validation_images(labels: Int[np.ndarray, "n"], share: float) -> Bool[np.ndarray, "n"]:
    """A stratified choice, the same for the same labels: at least one image of each class of two or more."""
    draws = uniform_rows(0, Stream.EVALUATION, 0, 0, len(labels), 1)[:, 0]
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[members[np.argsort(draws[members])[:count]]] = True
    if not held_out.any():
        raise InputError(
            "every class has a single training image, so the regularisation cannot be chosen; "
            "give at least two images of a class, or a single inverse_regularisation"
        )
    return held_out


def _path(
    config: LinearConfig,
    strengths: list[float],
    train: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m D"],
    test_labels: Int[np.ndarray, "m"],
) -> list[float]:
    """Percent right on the test features for each strength, every fit started from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(max_iter=config.max_iterations, warm_start=True)
    accuracies = []
    with warnings.catch_warnings():
        # Stopping early is part of the protocol (max_iterations), not something the user can act on.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            classifier.set_params(C=strength).fit(train, labels)
            right = classifier.predict(test) == test_labels
            accuracies.append(100 * int(right.sum()) / len(right))
    return accuracies
