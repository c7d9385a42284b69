"""What the embeddings look like: rank, spread, and how much of the targets the predictor knows."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cjepa.evaluation.features import RESOLUTION


def singular_values(embeddings: Float[Tensor, "n D"]) -> Float64[Tensor, "K"]:
    """Standard deviations along the principal axes, largest first.

    The singular values of the centred embeddings / sqrt(n). Those within float32 rounding of the embeddings'
    size are exactly 0, so that a collapsed encoder's last bits do not look like many dimensions.
    """
    exact = embeddings.double()
    values = torch.linalg.svdvals(exact - exact.mean(0)) / len(exact) ** 0.5
    size = exact.square().mean().sqrt()
    return torch.where(values > RESOLUTION * size, values, 0.0)


def effective_rank(embeddings: Float[Tensor, "n D"]) -> float:
    """Exponential of the entropy of the normalised singular values of the centred embeddings.

    Between 1 and min(n - 1, D). RankMe (Garrido et al., 2023) does not centre; here the mean is removed,
    because pooled features share a large constant part that would hide the rest. Constant embeddings: 1.
    """
    values = singular_values(embeddings)
    if not values.any():
        return 1.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def dimension_std(embeddings: Float[Tensor, "n D"]) -> Float64[Tensor, "D"]:
    """Standard deviation of every dimension over n >= 2 embeddings: variance over n - 1, in two passes."""
    assert len(embeddings) >= 2, "a standard deviation needs at least two embeddings"
    exact = embeddings.double()
    return ((exact - exact.mean(0)).square().sum(0) / (len(exact) - 1)).sqrt()


def explained_variance(
    predicted: Float[Tensor, "B M T D"], target: Float[Tensor, "B M T D"], positions: Int[Tensor, "B M T"]
) -> float:
    """Share of the target variance within positions (patch indices) that the predictor explains.

    1 - SS_res / SS_within: SS_res sums |target - predicted|^2, SS_within |target - mean of its position|^2,
    the mean over the batch, scaled to be unbiased. So a predictor that knows only the true mean of each
    position scores about 0 at any batch size; 1 is perfect; below 0 is worse than the mean. Positions that a
    single image holds contribute nothing. If nothing varies within positions the score is 0.
    """
    images, width = len(target), target.shape[-1]
    place = positions.long()
    grid = int(place.max()) + 1
    image = torch.arange(images, device=place.device).view(-1, 1, 1)
    # Blocks of an image may overlap: the same target then counts several times, but is one observation.
    cell = (image * grid + place).flatten()
    times = torch.bincount(cell, minlength=images * grid).view(images, grid).double()
    total = times.sum(0)
    # E[SS_within] = variance * (total - sum of times^2 / total): total - 1 if every image holds it once.
    freedom = total - times.square().sum(0) / total.clamp(min=1)
    shared = (times > 0).sum(0) > 1
    unbiased = torch.where(shared, total / torch.where(shared, freedom, 1.0), 0.0)

    place = place.flatten()
    truth = target.reshape(-1, width).double()
    sums = torch.zeros(grid, width, dtype=truth.dtype, device=truth.device).index_add_(0, place, truth)
    means = sums / total.clamp(min=1).unsqueeze(1)
    within = ((truth - means[place]).square().sum(1) * unbiased[place]).sum()
    residual = (truth - predicted.reshape(-1, width).double()).square().sum(1)[shared[place]].sum()
    if within <= RESOLUTION**2 * truth.square().sum():
        return 0.0
    return float(1 - residual / within)


def position_errors(
    predicted: Float[Tensor, "B M T D"],
    target: Float[Tensor, "B M T D"],
    positions: Int[Tensor, "B M T"],
    patches: int,
) -> Float[Tensor, "patches"]:
    """Mean squared error of the predictions at each of so many positions, over images, blocks and features.

    NaN where no image has a target.
    """
    place = positions.long().flatten()
    errors = (predicted - target).square().mean(-1).double().flatten()
    sums = torch.zeros(patches, dtype=errors.dtype).index_add_(0, place, errors)
    return (sums / torch.bincount(place, minlength=patches)).float()
