"""What a report shows of a run: plain values, of which nothing here knows how they came about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from cjepa.types import Masks
from cjepa.visualization.series import Row


@dataclass(frozen=True)
class Pairs:
    """The most similar images by their embeddings, the most similar first: cosine of centred embeddings, pictures of
    both, names of both."""

    similarity: Float[Tensor, "p"]
    images: UInt8[Tensor, "p 2 3 h w"]
    names: tuple[tuple[str, str], ...]
    among: int
    """How many images were compared with each other."""


@dataclass(frozen=True)
class Snapshot:
    """What an encoder made of the fixed images after a step.

    patches: the target encoder's patch features of the n examples. attention_target, attention_context: attention
    received in the last block of either encoder. embeddings: pooled, of the m compared images. singular_values,
    deviations: of the embeddings of all test images. errors: mean squared prediction error of each patch position.
    """

    step: int
    patches: Float[Tensor, "n N D"]
    attention_target: Float[Tensor, "n N"]
    attention_context: Float[Tensor, "n N"]
    embeddings: Float[Tensor, "m D"]
    singular_values: Float[Tensor, "K"]
    deviations: Float[Tensor, "D"]
    errors: Float[Tensor, "N"]
    pairs: Pairs


@dataclass(frozen=True)
class Samples:
    """The fixed images of a run: n examples and m compared ones (small, with labels), as evaluations see them; random
    crops as training sees them; height and width of the compared images' files in pixels."""

    examples: UInt8[Tensor, "n 3 H W"]
    example_names: tuple[str, ...]
    compared: UInt8[Tensor, "m 3 h w"]
    labels: Int[Tensor, "m"]
    crops: UInt8[Tensor, "c 3 H W"]
    sizes: Int[Tensor, "m 2"]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a run in a word or two, what it rests on, and what to change."""

    state: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Evaluation:
    """One line of evaluations.jsonl; `protocol` is equal where values compare."""

    step: int
    name: str
    encoder: str
    protocol: str
    test_images: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunMaterial:
    """Everything a page shows of one run; what is missing is empty or None.

    identity: equal for runs that differ by their seed alone. facts: what was run, by name. weights: factors of the
    loss's terms. started: whether it began with weights of its own choice, so that before training is not untrained.
    images_per_epoch, batch_size: to convert steps. clock: steps, and seconds of training until them.
    """

    name: str
    identity: str
    seed: int
    judgement: Judgement
    progress: str
    finished: bool
    facts: Sequence[tuple[str, str]]
    config: str
    rows: Sequence[Row]
    weights: Mapping[str, float]
    quality: str
    tested: int
    batch_size: int
    images_per_epoch: int
    grid: tuple[int, int]
    patch_size: int
    started: bool = False
    clock: tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]] | None = None
    evaluations: Sequence[Evaluation] = ()
    unreadable: Sequence[tuple[str, str]] = ()
    classes: tuple[str, ...] = ()
    samples: Samples | None = None
    snapshots: Sequence[Snapshot] = ()
    masks: Sequence[Masks] = ()
    notes: Sequence[str] = field(default_factory=list)
    """What is missing, and why."""
