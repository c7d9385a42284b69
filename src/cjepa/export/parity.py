"""The check that every export has to pass: what was written, opened by whoever reads it, gives the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.errors import CjepaError
from cjepa.models.pretrained import PretrainedEncoder, normalise

TOLERANCE = 1e-4
"""Largest difference of an embedding's feature, as a share of the features' root mean square, that is rounding."""


class ParityError(CjepaError):
    """What was written does not give the same numbers; the export was removed."""

    exit_code = 2


@dataclass(frozen=True)
class Difference:
    """The largest difference of one comparison, in `unit`, and what is tolerated."""

    what: str
    largest: float
    tolerance: float
    unit: str = "of the features' RMS"

    @property
    def fits(self) -> bool:
        """NaN never fits."""
        return self.largest <= self.tolerance

    def __str__(self) -> str:
        return f"{self.what}: largest difference {self.largest:.1e} {self.unit}, tolerated {self.tolerance:.0e}"


def compare(what: str, expected: Float[Tensor, "*shape"], found: Float[Tensor, "*other"]) -> Difference:
    """The largest difference of two tensors as a share of the RMS of the expected one; infinite for other shapes."""
    if expected.shape != found.shape:
        return Difference(f"{what} (shape {list(found.shape)} instead of {list(expected.shape)})", np.inf, TOLERANCE)
    scale = float(expected.double().square().mean().sqrt())
    largest = float((expected.double() - found.double()).abs().max())
    return Difference(what, largest / max(scale, 1e-12), TOLERANCE)


def require(differences: Sequence[Difference]) -> None:
    """ParityError unless every difference is tolerated."""
    off = [str(each) for each in differences if not each.fits]
    if off:
        raise ParityError(
            "what was written does not give the encoder's numbers, so the export was removed:\n  "
            + "\n  ".join(off)
            + "\nThe run is untouched; another format may work, and this is a fault to report"
        )


def probe(encoder: PretrainedEncoder, size: tuple[int, int], count: int = 2) -> Float[Tensor, "B 3 H W"]:
    """Normalised random images of a size, always the same."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    return normalise(pixels, encoder.mean, encoder.std)


def sizes(encoder: PretrainedEncoder) -> list[tuple[int, int]]:
    """Three sizes to compare at: that of the training, a larger one, and one that is neither square nor of its grid."""
    patch = encoder.patch_size
    rows, columns = (max(side // patch, 2) for side in encoder.image_size)
    return [
        (rows * patch, columns * patch),
        ((rows + rows // 2) * patch, (columns + columns // 2) * patch),
        (max(rows // 2, 2) * patch, (columns + 1) * patch),
    ]
