"""Weights of unknown origin against our encoder: which one they are of, and everything that does not fit."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.errors import InputError
from cjepa.models.positions import sincos_positions
from cjepa.models.vit import CHANNELS, SIZES, EncoderConfig, VisionTransformer

POSITION_TOLERANCE = 1e-3
"""Largest difference of stored positions from computed ones that counts as rounding, as a share of the factor on them.

Meta's target encoders average their positions too, over more than 10^5 steps in float32: rounding moves them by some
10^-4, more in longer trainings; a test takes such steps. Learned positions differ by far more.
"""
MOST_PROBLEMS = 40
"""Names that a message lists; one block has 12."""
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Positions:
    """The grid whose sin-cos positions a file holds, and the factor on them."""

    grid: tuple[int, int]
    scale: float


def find_config(weights: Mapping[str, Tensor], heads: int | None, scale: float, origin: str) -> EncoderConfig:
    """The config of the encoder that these weights, under our names, are of; InputError where it cannot be told.

    heads: where the file names them; otherwise those of the named size of the same width.
    """
    needed = ("patch_projection.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in weights or weights[name].ndim != 2]
    if missing:
        raise InputError(f"{origin} is no vision transformer of this kind: it has no {' and no '.join(missing)}")
    width, inputs = weights[needed[0]].shape
    if not width:
        raise InputError(f"{origin}: its embeddings have no features")
    patch_size = math.isqrt(inputs // CHANNELS)
    if patch_size < 1 or CHANNELS * patch_size**2 != inputs:
        raise InputError(f"{origin}: its patches have {inputs} values, which is no square of {CHANNELS} colours")
    known = {size[0]: size[2] for size in SIZES.values()}
    if heads is None and width not in known:
        raise InputError(
            f"{origin} does not say how many attention heads there are, and a width of {width} is that of no named "
            "size; state them: --heads, in Python heads=..., or model.encoder.heads for a run"
        )
    try:
        return EncoderConfig(
            width=width,
            depth=len({match[1] for name in weights if (match := _BLOCK.match(name))}),
            heads=known[width] if heads is None else heads,
            patch_size=patch_size,
            mlp_ratio=_ratio(len(weights[needed[1]]), width),
            position_scale=scale,
        )
    except ValueError as error:
        raise InputError(f"{origin} is no encoder that can be built here: {error}") from error


def _ratio(hidden: int, width: int) -> float:
    """A ratio that gives exactly this hidden width back: 6144 / 1408 times 1408 may fall below 6144."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def fit(weights: Mapping[str, Tensor], config: EncoderConfig, origin: str) -> dict[str, Tensor]:
    """The weights in float32. InputError lists the names and shapes that do not fit, MOST_PROBLEMS at most.

    Nothing but one block is built before the names agree, so a file cannot ask for an encoder larger than itself.
    """
    expected = _shapes(config)
    problems = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in weights]
    problems += [
        f"not of this encoder: {name} {_shape(tuple(weights[name].shape))}" for name in weights if name not in expected
    ]
    problems += [
        f"another shape: {name} is {_shape(tuple(weights[name].shape))}, must be {_shape(shape)}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        shown, rest = problems[:MOST_PROBLEMS], len(problems) - MOST_PROBLEMS
        raise InputError(
            f"{origin} does not fit an encoder of width {config.width}, {config.depth} blocks and patches of "
            f"{config.patch_size} pixels; nothing was loaded:\n  "
            + "\n  ".join([*shown, f"and {rest:,} more"] if rest > 0 else shown)
        )
    return {name: weights[name].float() for name in expected}


def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an encoder's weights; every block has those of the first."""
    with torch.device("meta"):
        shallow = VisionTransformer(config.model_copy(update={"depth": 1})).state_dict()
    shapes = {name: tuple(value.shape) for name, value in shallow.items()}
    block = [(name, shape) for name, shape in shapes.items() if _BLOCK.match(name)]
    return shapes | {
        _BLOCK.sub(f"blocks.{number}.", name, count=1): shape for number in range(config.depth) for name, shape in block
    }


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def find_positions(stored: Float[Tensor, "1 N D"], origin: str) -> Positions:
    """The grid and factor of stored positions; InputError, with the difference, when they are not sin-cos.

    A square grid is tried first. bfloat16 in the file moves positions further than averaging does.
    """
    rows = stored[0].double()
    if rows.shape[1] % 4:
        raise InputError(f"{origin}: positions of {rows.shape[1]} features cannot be sin-cos positions of a grid")
    tolerance = max(POSITION_TOLERANCE, float(torch.finfo(stored.dtype).eps))
    closest = (math.inf, (0, 0))
    for grid in _grids(len(rows)):
        waves = sincos_positions(*grid, rows.shape[1]).double()
        scale = float((rows * waves).sum() / waves.square().sum())
        difference = float((rows - scale * waves).abs().max())
        if scale >= 0.0 and difference <= tolerance * scale:
            return Positions(grid, 1.0 if abs(scale - 1.0) <= tolerance else scale)
        closest = min(closest, (difference, grid))
    difference, (height, width) = closest
    raise InputError(
        f"{origin}: its {len(rows)} positions are not the fixed sin-cos ones (the closest grid, {height} x {width}, "
        f"differs by {difference:.2g}); encoders with learned positions or a class token cannot be used here"
    )


def _grids(count: int) -> Iterator[tuple[int, int]]:
    """Every grid of so many patches, the squarest first."""
    sides = [side for side in range(1, math.isqrt(count) + 1) if count % side == 0]
    for side in reversed(sides):
        yield from dict.fromkeys([(side, count // side), (count // side, side)])
