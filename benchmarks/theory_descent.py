"""The same linear networks trained: matrices, random batches, and gradients from torch and the project's own terms."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.theory_dynamics import Array, Setting
from cjepa.objectives.vicreg import covariance_penalty, variance_hinge

Rows = list[tuple[float, Array, Array]]


def descend(
    settings: Sequence[Setting], rate: float, steps: int, batch: int, seed: int = 0, rows: int = 50
) -> tuple[Array, Array, Array]:
    """Train all modes at once, one for each setting: times, amplitudes w [modes, rows] and predictor p [modes, rows].

    Encoder, predictor and target are full matrices, diagonal in a basis that is random where VICReg does not single
    out the axes. The settings may differ in the mode's predictor and start alone.
    """
    generator = torch.Generator().manual_seed(seed)
    one, size = settings[0], len(settings)
    turn, mix = _rotation(size, generator), _rotation(size, generator)
    if one.variance:
        turn = torch.eye(size, dtype=torch.float64)
    encoder = (turn @ torch.diag(_values(settings, "start")) @ mix).requires_grad_()
    predictor = (turn @ torch.diag(_values(settings, "predictor")) @ turn.T).requires_grad_(one.learns > 0)
    average = encoder.detach().clone()
    found: Rows = []
    for step in range(steps + 1):
        if step % max(steps // rows, 1) == 0:
            found.append((rate * step, *_read(encoder, predictor, turn)))
        loss = _loss(one, encoder, predictor, average, batch, generator)
        loss.backward()
        with torch.no_grad():
            for weight, speed in ((encoder, rate), (predictor, rate * one.learns)):
                if weight.grad is not None:
                    weight -= speed * (weight.grad + one.decay * weight)
                    weight.grad = None
            average.lerp_(encoder.detach(), rate * one.follows)
    times, amplitudes, factors = zip(*found, strict=True)
    return np.array(times), np.stack(amplitudes, axis=1), np.stack(factors, axis=1)


def _loss(
    setting: Setting, encoder: Tensor, predictor: Tensor, average: Tensor, batch: int, generator: torch.Generator
) -> Tensor:
    def drawn() -> Tensor:
        return torch.randn(batch, len(encoder), generator=generator, dtype=torch.float64)

    content = drawn()
    seen, other = content, content
    if setting.noise:
        seen, other = content + setting.noise**0.5 * drawn(), content + setting.noise**0.5 * drawn()
    context = seen @ encoder.T
    if setting.target == "average":
        target = other @ average.T
    else:
        target = other @ (encoder.T if setting.target == "gradient" else encoder.detach().T)
    loss = 0.5 * (context @ predictor.T - target).square().sum(dim=1).mean()
    if setting.variance:
        loss = loss + setting.variance * len(encoder) * variance_hinge(context[:, None])
    return loss


def descend_covariance(
    weight: float,
    push: float,
    start: Sequence[float],
    rate: float,
    steps: int,
    batch: int,
    seed: int = 0,
    rows: int = 50,
) -> tuple[Array, Array]:
    """Two dimensions of equal variance whose covariance has these eigenvalues, under VICReg alone: times, [2, rows]."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    encoder = half @ torch.diag(torch.tensor(start, dtype=torch.float64).sqrt()) @ _rotation(2, generator)
    encoder.requires_grad_()
    found: list[tuple[float, Array]] = []
    for step in range(steps + 1):
        if step % max(steps // rows, 1) == 0:
            values = torch.linalg.eigvalsh((encoder @ encoder.T).detach()).flip(0)
            found.append((rate * step, values.numpy().copy()))
        embedded = torch.randn(batch, 2, generator=generator, dtype=torch.float64) @ encoder.T
        views = embedded[:, None]
        loss = 2.0 * (weight * covariance_penalty(views) + push * variance_hinge(views))
        loss.backward()
        with torch.no_grad():
            assert encoder.grad is not None
            encoder -= rate * encoder.grad
            encoder.grad = None
    times, values = zip(*found, strict=True)
    return np.array(times), np.stack(values, axis=1)


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def _values(settings: Sequence[Setting], name: str) -> Tensor:
    return torch.tensor([getattr(each, name) for each in settings], dtype=torch.float64)


def _read(encoder: Tensor, predictor: Tensor, turn: Tensor) -> tuple[Array, Array]:
    """Amplitude of each mode, and the predictor's diagonal in the modes' basis."""
    modes = turn.T @ encoder.detach()
    return modes.norm(dim=1).numpy().copy(), (turn.T @ predictor.detach() @ turn).diagonal().numpy().copy()
