"""What a training step needs, by formula: parameters, operations and memory, before anything is built.

n tokens of width d through a block with hidden ratio r cost 2 n d^2 (4 + 2 r) + 4 n^2 d operations forward (a product
of two numbers and its sum are two), twice that backward. For the backward pass such a block keeps n d (8 + 2 r)
numbers: its two normalisations' inputs and outputs (4), query, key and value (3), the attention's output (1), and the
hidden layer before and after its activation (2 r). The predictor has M sequences of C + T tokens, for M target blocks
of T patches and a context of C. With one-way attention it has one of C + M T, with C^2 + M T (C + T) pairs of query and
key, and keeps what it copies: keys, values and queries of every target block, and outputs.
tests/training/test_footprint.py and benchmarks/footprint.py compare this with what is counted and measured.
"""

from dataclasses import dataclass
from itertools import pairwise

from cjepa.models import EncoderConfig, ModelConfig
from cjepa.models.predictor import PredictorConfig
from cjepa.models.vit import CHANNELS
from cjepa.objectives.projector import ProjectorConfig
from cjepa.types import Precision

FLOAT = 4
"""Bytes of weights, moments, average and statistics, whatever the arithmetic of the forward pass."""
HALF_SHARE = 0.56
"""bfloat16 on a fused kernel: of a block's numbers the residual stream stays float32 (4 + 2 + 6 + 2 + 4 + 2 + 4 r
bytes at r = 4 instead of 64); counted by hand from autocast's rules, not measured."""
HALF_SHARE_ON_CPU = 0.75
"""bfloat16 on a CPU, where attention is not fused and autocast's copies stay: an estimate from one
measured peak of ViT-T, to be replaced by what benchmarks/footprint.py finds."""


@dataclass(frozen=True)
class Lengths:
    """Patches of an image, of its context, its target blocks and the patches of each."""

    patches: int
    context: int
    blocks: int
    target: int


@dataclass(frozen=True)
class Footprint:
    """Of one image, where nothing else is said.

    learned, average: numbers that the optimizer changes, and those of the target encoder. operations: of a step.
    activations: bytes for the backward pass and the work on the largest block. embeddings: bytes that stay while a
    batch is taken in parts. largest_block: numbers of the largest transformer block.
    """

    learned: int
    average: int
    operations: int
    activations: float
    embeddings: float
    largest_block: int

    def memory(self, images: int, micro_batch: int, shards: int = 1) -> float:
        """Bytes that a rank with this many images of the batch holds at its peak, besides the process itself.

        State is weights, two moments and the average, in float32; gradients grow while activations go, except where
        those of an earlier part are there already. With shards a rank holds its share of that, and two whole blocks.
        """
        state, gradients = FLOAT * (3 * self.learned + self.average) / shards, FLOAT * self.learned / shards
        whole = 0 if shards == 1 else 2 * 2 * FLOAT * self.largest_block
        activations = self.activations * min(micro_batch, images)
        if micro_batch >= images:
            return state + whole + max(gradients, activations)
        return state + whole + gradients + activations + self.embeddings * images

    def micro_batch(self, images: int, memory: float, shards: int = 1) -> int:
        """The largest even part of a rank's images that fits into so many bytes; 1 where nothing does."""
        sizes = sorted({-(-images // parts) for parts in range(1, images + 1)}, reverse=True)
        return next((size for size in sizes if self.memory(images, size, shards) <= memory), 1)


def footprint(
    model: ModelConfig,
    projector: ProjectorConfig | None,
    lengths: Lengths,
    precision: Precision,
    fused: bool,
    recompute: bool = False,
) -> Footprint:
    """The footprint of a model on images of this many patches; fused: whether attention is one kernel in bfloat16."""
    encoder, predictor = model.encoder, model.predictor
    inputs = CHANNELS * encoder.patch_size**2
    tokens, pairs, copied = predictor_tokens(predictor, lengths)
    asked = lengths.blocks * lengths.target
    width, inner, depth = encoder.width, predictor.width, predictor.blocks(encoder.width)

    blocks = encoder.depth * _block_parameters(width, encoder.mlp_ratio)
    vision = blocks + (inputs + 1) * width + 2 * width
    guessing = depth * _block_parameters(inner, predictor.mlp_ratio)
    guessing += (width + 1) * inner + inner + 2 * inner + (inner + 1) * width

    seen = encoder.depth * _block_operations(lengths.context, width, encoder.mlp_ratio)
    seen += 2 * lengths.context * inputs * width
    whole = encoder.depth * _block_operations(lengths.patches, width, encoder.mlp_ratio)
    whole += 2 * lengths.patches * inputs * width
    guessed = (depth - 1) * _block_operations(tokens, inner, predictor.mlp_ratio, pairs=pairs)
    last_pairs = asked * (lengths.context + lengths.target)
    guessed += _block_operations(tokens, inner, predictor.mlp_ratio, asked, last_pairs)
    guessed += 2 * (lengths.context + asked) * width * inner
    layers, rows = _projector_layers(projector, width), lengths.blocks
    projected = 2 * rows * sum(entering * leaving for entering, leaving in layers)

    kept = encoder.depth * _block_numbers(lengths.context, width, encoder.mlp_ratio, recompute)
    deep = depth - 1 + asked / tokens
    kept += deep * _block_numbers(tokens, inner, predictor.mlp_ratio, recompute)
    kept += 0 if recompute else depth * copied * inner
    once = _block_numbers(tokens, inner, predictor.mlp_ratio, False) + copied * inner if recompute else 0.0
    share = 1.0 if precision == "float32" else HALF_SHARE if fused else HALF_SHARE_ON_CPU
    work = 3 * tokens * inner * predictor.mlp_ratio
    embeddings = FLOAT * width * (lengths.context + 2 * lengths.blocks * lengths.target)
    pixels = FLOAT * 2 * lengths.patches * inputs
    of_projector = FLOAT * 4 * rows * sum(leaving for _, leaving in layers)
    return Footprint(
        learned=vision + guessing + sum(entering * leaving for entering, leaving in layers),
        average=vision,
        operations=3 * (seen + guessed + projected) + whole,
        activations=FLOAT * share * (kept + once + work) + 2 * embeddings + pixels + of_projector,
        embeddings=1.0 * FLOAT * width * (2 * lengths.context + 3 * lengths.blocks * lengths.target),
        largest_block=max(blocks // encoder.depth, _block_parameters(inner, predictor.mlp_ratio)),
    )


def predictor_tokens(predictor: PredictorConfig, lengths: Lengths) -> tuple[int, int, int]:
    """Of an image in a block of the predictor: tokens, pairs of query and key, and rows that are copied and kept."""
    own, asked = lengths.context + lengths.target, lengths.blocks * lengths.target
    if predictor.attention == "full":
        return lengths.blocks * own, lengths.blocks * own**2, 0
    tokens = lengths.context + asked
    # Copied are keys and values of the blocks' sequences, the blocks' queries, and all outputs.
    return tokens, lengths.context**2 + asked * own, 2 * lengths.blocks * own + asked + tokens


def views_footprint(
    encoder: EncoderConfig,
    projector: ProjectorConfig,
    hidden: int | None,
    patches: int,
    precision: Precision,
    fused: bool,
    recompute: bool = False,
) -> Footprint:
    """The footprint of two views of images of this many patches; hidden: of SimSiam's predictor, if there is one."""
    views, width, ratio = 2, encoder.width, encoder.mlp_ratio
    inputs = CHANNELS * encoder.patch_size**2
    vision = encoder.depth * _block_parameters(width, ratio) + (inputs + 1) * width + 2 * width
    seen = encoder.depth * _block_operations(patches, width, ratio) + 2 * patches * inputs * width
    layers = _projector_layers(projector, width)
    if hidden is not None:
        last = layers[-1][1] if layers else width
        layers += [(last, hidden), (hidden, last)]
    weights = sum(entering * leaving for entering, leaving in layers)
    kept = encoder.depth * _block_numbers(patches, width, ratio, recompute)
    kept += _block_numbers(patches, width, ratio, False) if recompute else 0.0
    share = 1.0 if precision == "float32" else HALF_SHARE if fused else HALF_SHARE_ON_CPU
    work = 3 * patches * width * ratio
    of_projector = FLOAT * 4 * sum(leaving for _, leaving in layers)
    pixels = FLOAT * 2 * patches * inputs
    return Footprint(
        learned=vision + weights,
        average=vision,
        operations=3 * views * (seen + 2 * weights),
        activations=views * (FLOAT * share * (kept + work) + pixels + of_projector),
        embeddings=1.0 * FLOAT * width * 3 * views,
        largest_block=_block_parameters(width, ratio),
    )


def _block_parameters(width: int, ratio: float) -> int:
    hidden = int(width * ratio)
    return 4 * width * width + 4 * width + 2 * width * hidden + hidden + width + 4 * width


def _block_operations(tokens: int, width: int, ratio: float, rows: int | None = None, pairs: int | None = None) -> int:
    """Of a forward pass in which only the last `rows` tokens are computed to the end.

    pairs: of query and key; by default every row attends to every token.
    """
    rows = tokens if rows is None else rows
    pairs = rows * tokens if pairs is None else pairs
    hidden = int(width * ratio)
    return 2 * tokens * width * 2 * width + 2 * rows * width * (2 * width + 2 * hidden) + 4 * pairs * width


def _block_numbers(tokens: int, width: int, ratio: float, recompute: bool) -> float:
    """That stay for the backward pass: all of them, or the input alone."""
    return tokens * width * (1.0 if recompute else 8.0 + 2.0 * ratio)


def _projector_layers(projector: ProjectorConfig | None, inputs: int) -> list[tuple[int, int]]:
    if projector is None:
        return []
    sizes = [inputs] + [projector.width] * projector.depth
    return list(pairwise(sizes))
