"""Decorrelated features: what a linear classifier could do itself, had it the steps.

Features of a fresh or collapsing encoder are nearly collinear, and on merely standardised ones gradient descent and
L-BFGS both stop many points early, which says more about the fit than about the features.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cjepa.errors import DivergedError

SHRINKAGE = 1e-3
"""Added to the diagonal of a correlation matrix, whose diagonal is 1."""


def root_of(correlation: Float[Tensor, "F F"]) -> Float[Tensor, "F F"]:
    """Lower triangular R with R R^T = correlation + SHRINKAGE * identity; R^-1 decorrelates standardised features."""
    shrunk = correlation.clone()
    shrunk.diagonal().add_(SHRINKAGE)
    root: Tensor = torch.linalg.cholesky(shrunk)
    return root


class Moments:
    """Means and products of features that come in parts, in float64; on the CPU where the device has none."""

    def __init__(self, features: int, device: torch.device) -> None:
        if device.type == "mps":
            device = torch.device("cpu")
        self.count = 0
        self.total = torch.zeros(features, dtype=torch.float64, device=device)
        self.products = torch.zeros(features, features, dtype=torch.float64, device=device)

    def add(self, rows: Float[Tensor, "n F"]) -> None:
        """Count n more."""
        rows = rows.to(self.total.device).double()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products += rows.T @ rows

    def whitening(self) -> tuple[Float[Tensor, "F"], Float[Tensor, "F F"]]:
        """Mean m and matrix W of W (x - m), whose covariance is the identity up to SHRINKAGE; float32.

        Features that do not vary become 0. Raises DivergedError if what was seen is not finite.
        """
        if not self.products.isfinite().all():
            raise DivergedError("the encoder's embeddings are not finite; evaluate other weights, or --checkpoint best")
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        variance, noise = covariance.diagonal(), self.products.diagonal() / self.count * 1e-12
        scale = torch.where(variance > noise, variance, torch.inf).rsqrt()
        correlation = covariance * torch.outer(scale, scale)
        identity = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        whiten = torch.linalg.solve_triangular(root_of(correlation), identity, upper=False) * scale
        return mean.float(), whiten.float()


class Whitening(nn.Module):
    """W (x - m) at every place of a map, in float32; the identity until it is told."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.eye(features))

    def learn(self, moments: Moments) -> None:
        """Take mean and matrix from features that were seen."""
        mean, matrix = moments.whitening()
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)

    def forward(self, maps: Float[Tensor, "B F h w"]) -> Float[Tensor, "B F h w"]:
        """Place by place. Not in bfloat16: its error in the large directions would drown the small ones."""
        with torch.autocast(maps.device.type, enabled=False):
            centred = maps.float() - self.mean[:, None, None]
            return torch.einsum("gf,bfhw->bghw", self.matrix, centred)
