"""Scores of a segmentation, from how often each class was taken for which."""

import numpy as np
from jaxtyping import Int, Integer

from cjepa.evaluation.segmentation_data import UNSCORED


def confusion_of(
    truth: Integer[np.ndarray, "H W"], predicted: Integer[np.ndarray, "H W"], classes: int
) -> Int[np.ndarray, "C C"]:
    """Pixels of each true class (rows) that were taken for each class (columns); UNSCORED ones are left out."""
    scored = truth != UNSCORED
    pairs = truth[scored].astype(np.int64) * classes + predicted[scored].astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def segmentation_scores(confusion: Int[np.ndarray, "C C"]) -> dict[str, float]:
    """Percent: mean over classes of intersection over union (mIoU) and of recall (mAcc), and of all pixels (aAcc).

    Classes that neither the masks nor the predictions hold are left out of mIoU, classes without a pixel of mAcc.
    """
    right, true, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    union = true + taken - right
    return {
        "mIoU": 100 * float((right[union > 0] / union[union > 0]).mean()),
        "mAcc": 100 * float((right[true > 0] / true[true > 0]).mean()),
        "aAcc": 100 * float(right.sum() / confusion.sum()),
    }
