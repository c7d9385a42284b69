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
    order = np.argsort(variances)[::-1][:count]
    basis = axes[:, order]
    largest = np.abs(basis).argmax(axis=0)
    basis *= np.where(basis[largest, np.arange(basis.shape[1])] < 0, -1.0, 1.0)
    missing = count - basis.shape[1]
    scores = np.pad(centred @ basis, ((0, 0), (0, missing)))
    shares = np.pad(
        variances[order].clip(0.0) / max(variances.clip(0.0).sum(), np.finfo(np.float64).tiny), (0, missing)
    )
    return scores, shares
