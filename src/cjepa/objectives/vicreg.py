"""VICReg's three terms for M views of a batch (Bardes et al., 2022; Eq. 3-4 and Algorithm 1 of the C-JEPA paper).

All take z of shape [B, M, D]: M views (target blocks) of B images. Statistics are taken over the images of each view,
in float32 or better, in two passes: E[x^2] - E[x]^2 would cancel, and half precision would overflow.
"""

from jaxtyping import Float
from torch import Tensor

VARIANCE_EPSILON = 1e-4


def similarity(views: Float[Tensor, "B M D"]) -> Float[Tensor, ""]:
    """Mean over ordered pairs i != j of mse(z_i, z_j).

    It equals 2 / (M - 1) times the sum over views of the squared distance to their mean, averaged over B and D.
    """
    count = views.shape[1]
    centred = views - views.mean(dim=1, keepdim=True)
    return centred.square().sum(dim=1).mean() * (2.0 / (count - 1))


def variance_hinge(views: Float[Tensor, "B M D"]) -> Float[Tensor, ""]:
    """Mean over views and dimensions of max(0, 1 - sqrt(var(z) + 1e-4)), unbiased variance over images."""
    deviation = (views.var(dim=0) + VARIANCE_EPSILON).sqrt()
    return (1.0 - deviation).relu().mean()


def covariance_penalty(views: Float[Tensor, "B M D"]) -> Float[Tensor, ""]:
    """Mean over views of the sum of squared off-diagonal covariances, divided by D.

    The D x D matrix of a view is never larger than needed: where B < D, the sum of its squares is taken from the
    B x B Gram matrix instead, which has the same Frobenius norm.
    """
    images, _, features = views.shape
    by_view = views.transpose(0, 1)
    centred = by_view - by_view.mean(dim=1, keepdim=True)
    small = centred if images < features else centred.transpose(1, 2)
    gram = small @ small.transpose(1, 2) / (images - 1)
    diagonal = centred.square().sum(dim=1) / (images - 1)
    off_diagonal = gram.square().sum(dim=(1, 2)) - diagonal.square().sum(dim=1)
    return off_diagonal.mean() / features
