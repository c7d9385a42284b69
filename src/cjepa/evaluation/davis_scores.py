"""DAVIS's measures of a video segmentation: region similarity J and contour accuracy F (Perazzi et al., 2016).

Written from the definitions of the paper and of the 2017 challenge (Pont-Tuset et al., 2017): every object is scored
in every frame but the first, which is given, and the last; then mean, recall and decay of each object are averaged.
A test holds it against scores of the public davis2017-evaluation.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Integer

VOID = 255
"""Label in annotations of pixels that belong to no object: ground, as in the public evaluation of this task."""
CONTOUR_TOLERANCE = 0.008
"""Distance at which contours still meet, as a share of the image's diagonal; rounded up to pixels."""
RECALL_AT = 0.5
_QUARTERS = 4


def object_scores(
    truth: Integer[np.ndarray, "T H W"], found: Integer[np.ndarray, "T H W"]
) -> tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]:
    """J and F of every object in every frame but the first and the last; objects are those of the first frames.

    truth, found: numbers of objects, 0 for the ground; VOID in truth is ground too.
    """
    objects = int(truth[truth != VOID].max(initial=0))
    region, contour = np.zeros((2, objects, len(truth) - 2))
    for frame in range(1, len(truth) - 1):
        for number in range(1, objects + 1):
            true, taken = truth[frame] == number, found[frame] == number
            region[number - 1, frame - 1] = region_similarity(true, taken)
            contour[number - 1, frame - 1] = contour_accuracy(true, taken)
    return region, contour


def region_similarity(true: Bool[np.ndarray, "H W"], taken: Bool[np.ndarray, "H W"]) -> float:
    """J: intersection over union; 1 where both are empty."""
    union = int((true | taken).sum())
    return 1.0 if union == 0 else int((true & taken).sum()) / union


def contour_accuracy(true: Bool[np.ndarray, "H W"], taken: Bool[np.ndarray, "H W"]) -> float:
    """F: harmonic mean of the shares of each contour that lie near the other; near is CONTOUR_TOLERANCE.

    An empty contour is right where the other one is empty as well, and misses all of it otherwise.
    """
    reach = math.ceil(CONTOUR_TOLERANCE * math.hypot(*true.shape))
    true_contour, taken_contour = contour(true), contour(taken)
    if not true_contour.any() or not taken_contour.any():
        return float(true_contour.any() == taken_contour.any())
    precision = float((taken_contour & _near(true_contour, reach)).sum() / taken_contour.sum())
    recall = float((true_contour & _near(taken_contour, reach)).sum() / true_contour.sum())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def contour(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that differ from their neighbour to the right, below, or right below; the image's rim is no contour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def _near(pixels: Bool[np.ndarray, "H W"], reach: int) -> Bool[np.ndarray, "H W"]:
    """Pixels within this Euclidean distance of the given ones."""
    from scipy.ndimage import distance_transform_edt  # scikit-learn brings it

    near: np.ndarray = distance_transform_edt(~pixels) <= reach
    return near


def mean_recall_decay(values: Float[np.ndarray, "_"]) -> tuple[float, float, float]:
    """Mean, share above 0.5, and what the first quarter of the frames is better than the last one.

    Neighbouring quarters share the frame at their border, as in the challenge's own evaluation.
    """
    borders = np.round(np.linspace(1, len(values), _QUARTERS + 1) + 1e-10).astype(int) - 1
    first, last = values[: borders[1] + 1], values[borders[-2] :]
    return float(values.mean()), float((values > RECALL_AT).mean()), float(first.mean() - last.mean())


def summary(
    scores: list[tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]],
) -> dict[str, float]:
    """Percent, averaged over the objects of all sequences: J and F with recall and decay, and the mean of J and F."""
    values = {}
    for part, name in enumerate(("J", "F")):
        each = np.array([mean_recall_decay(row) for pair in scores for row in pair[part]])
        for label, value in zip(("mean", "recall", "decay"), each.mean(0), strict=True):
            values[f"{name}_{label}"] = 100 * float(value)
    return {"JF_mean": (values["J_mean"] + values["F_mean"]) / 2} | values
