"""Principal components, with signs that do not depend on the linear algebra library."""

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor


def principal_components(
    features: Float[Tensor, "n D"], count: int
) -> tuple[Float64[np.ndarray, "n count"], Float64[np.ndarray, "count"]]:
    """Scores on the first components of the centred features, and each component's share of the variance.

    Signs are fixed: the largest loading of a component is positive. Components beyond D are zero.
    """
    exact = features.detach().cpu().double().numpy()
    centred = exact - exact.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, axes = variances[::-1].clip(0.0), axes[:, ::-1]
    basis = axes[:, :count]
    largest = np.abs(basis).argmax(axis=0)
    basis = basis * np.where(basis[largest, np.arange(basis.shape[1])] < 0, -1.0, 1.0)
    shares = variances[:count] / (variances.sum() or 1.0)
    missing = (0, count - basis.shape[1])
    return np.pad(centred @ basis, ((0, 0), missing)), np.pad(shares, missing)


def turn_onto(
    own: Float64[np.ndarray, "n k"], reference: Float64[np.ndarray, "n k"]
) -> tuple[Float64[np.ndarray, "k k"], float]:
    """The rotation or reflection R that brings `own @ R` closest to the reference, row by row, and how close.

    Orthogonal Procrustes of the centred rows (Schoenemann 1966): R = U V' of the singular value decomposition of
    own' reference. The second value is the correlation of all coordinates after that, 0 to 1; of whitened coordinates
    it is the mean canonical correlation. It is 0 where either does not vary.
    """
    first, second = own - own.mean(axis=0), reference - reference.mean(axis=0)
    left, singular, right = np.linalg.svd(first.T @ second)
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return left @ right, float(singular.sum() / size) if size > 0 else 0.0
