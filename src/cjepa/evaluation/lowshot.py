"""Logistic regression on few labelled images: how many labels does pre-training save?"""

import warnings
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, model_validator

from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures, constant_dimensions
from cjepa.evaluation.knn import Centre, directions
from cjepa.evaluation.pooling import LAST_LAYER, PoolingConfig
from cjepa.evaluation.storage import row_blocks
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Part

_DRAWS_KEY = 1 << 33
"""Key of the choices within Stream.EVALUATION, away from those of crops and validation images."""


class LowshotConfig(Part):
    """Logistic regression on the frozen features of few labelled images, over several choices of them."""

    name: Literal["lowshot"] = "lowshot"
    """Logistic regression on few labels."""
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01, 0.1)
    """Shares of each class's training images that keep their label, at least one of each class."""
    per_class: tuple[Annotated[int, Field(gt=0)], ...] = (1, 5)
    """Numbers of labelled training images of each class."""
    draws: int = Field(3, ge=2)
    """Choices of labelled images; their mean and standard deviation are reported."""
    regularisation: float = Field(1e-3, gt=0)
    """Strength r in (mean cross-entropy) + r * |weights|^2 / 2; fixed, as there are no labels to choose it on."""
    max_iterations: int = Field(200, gt=0)
    """Iterations of L-BFGS for each fit."""
    pooling: PoolingConfig = LAST_LAYER
    """How patch embeddings become the features of an image."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "LowshotConfig":
        if not self.shares and not self.per_class:
            raise ValueError("shares and per_class are both empty; name at least one")
        return self


def lowshot_accuracy(config: LowshotConfig, features: LabelledFeatures) -> dict[str, float]:
    """Percent of the test images right with few labels: `lowshot_1_percent`, `lowshot_5_per_class`, each with `_std`.

    Features are centred by all training images, which takes no labels, and scaled to length one (as MSN does for its
    low-shot evaluation, Assran et al., 2022). Every number of labels is drawn `draws` times, the same images for
    every encoder; the standard deviation is over these draws. Raises InputError if a class has fewer images.
    """
    centre = Centre(features.train.mean(0), ~constant_dimensions(features.train))
    labels = features.train_labels.numpy()
    check_counts(config, labels, features.classes)
    wanted = {f"lowshot_{100 * share:g}_percent": _of_each_class(labels, share) for share in config.shares}
    for count in config.per_class:
        wanted[f"lowshot_{count}_per_class"] = dict.fromkeys(np.unique(labels).tolist(), count)
    values = {}
    for name, counts in wanted.items():
        accuracies = []
        for draw in range(config.draws):
            chosen = _choice(labels, counts, draw)
            accuracies.append(_accuracy(config, features, centre, chosen))
        values[name] = float(np.mean(accuracies))
        values[f"{name}_std"] = float(np.std(accuracies, ddof=1))
    return values


def _of_each_class(labels: Int[np.ndarray, "n"], share: float) -> dict[int, int]:
    counts = np.unique(labels, return_counts=True)
    return {int(label): max(1, round(share * count)) for label, count in zip(*counts, strict=True)}


def check_counts(config: LowshotConfig, labels: Int[np.ndarray, "n"], classes: tuple[str, ...]) -> None:
    """InputError if a class has fewer training images than per_class asks for. labels: of the training images."""
    present, images = np.unique(labels, return_counts=True)
    for count in config.per_class:
        few = [classes[label] for label in present[images < count]]
        if few:
            raise InputError(
                f"per_class: class {few[0]} has fewer than {count} training images; ask for fewer, or add images"
            )


def _choice(labels: Int[np.ndarray, "n"], counts: dict[int, int], draw: int) -> Int[np.ndarray, "k"]:
    """Labelled images of one draw; a larger number of the same draw contains a smaller one."""
    order = uniform_rows(0, Stream.EVALUATION, _DRAWS_KEY + draw, 0, len(labels), 1)[:, 0]
    members = {label: np.flatnonzero(labels == label) for label in counts}
    return np.concatenate([members[label][np.argsort(order[members[label]])[:n]] for label, n in counts.items()])


def _accuracy(config: LowshotConfig, features: LabelledFeatures, centre: Centre, chosen: Int[np.ndarray, "k"]) -> float:
    """Percent of the test images right; of features that lie on the disk a block is in memory at a time."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=1 / (config.regularisation * len(chosen)), max_iter=config.max_iterations)
    labelled = directions(features.train[chosen], centre).numpy()
    with warnings.catch_warnings():
        # Stopping early is part of the protocol (max_iterations), not something the user can act on.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(labelled, features.train_labels[chosen].numpy())
    blocks = row_blocks(features.test)
    labels = features.test_labels.split([len(block) for block in blocks])
    found = (classifier.predict(directions(block, centre).numpy()) for block in blocks)
    right = sum(int((each == truth.numpy()).sum()) for each, truth in zip(found, labels, strict=True))
    return 100 * right / len(features.test)
