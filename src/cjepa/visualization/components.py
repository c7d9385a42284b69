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
