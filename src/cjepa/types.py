"""The vocabulary shared by all parts: nothing here knows how any of them works."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Precision = Literal["bfloat16", "float32"]
"""Of a forward pass: bfloat16 by autocast."""


class Part(BaseModel):
    """Base of every config: frozen, unknown keys refused, each key documented by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    shorthand: ClassVar[str | None] = None
    """The key that a bare value stands for: with "source", `data=DIR` means `data.source=DIR`."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU copies it in its turn, without the host waiting for what it still has to do.

    Only from pinned memory is a copy to a GPU not waited for, whatever non_blocking says.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Masks:
    """Which patches the context encoder sees and which blocks are predicted, for each image of a batch.

    Indices count the patches of the grid row by row; they are sorted within each block. Block sizes are
    shared by the whole batch, so the tensors are rectangular.
    """

    context: Int[Tensor, "B C"]
    targets: Int[Tensor, "B M T"]

    def to(self, device: torch.device) -> "Masks":
        """The same masks on another device."""
        return Masks(to_device(self.context, device), to_device(self.targets, device))

    def pin_memory(self) -> "Masks":
        """The same masks in memory that a GPU copies from while it computes."""
        return Masks(self.context.pin_memory(), self.targets.pin_memory())


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded: its index in the source, its name and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """What one training step consumes. `samples` are the source indices of the images.

    second: where two views of an image are compared, the other one; then the masks are not used.
    """

    images: UInt8[Tensor, "B 3 H W"]
    masks: Masks
    samples: Int[Tensor, "B"]
    unreadable: tuple[Unreadable, ...] = ()
    second: UInt8[Tensor, "B 3 H W"] | None = None

    def pin_memory(self) -> "Batch":
        """The same batch in memory that a GPU copies from while it computes; the loader calls this."""
        second = None if self.second is None else self.second.pin_memory()
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory(), second=second)


@dataclass(frozen=True)
class Embeddings:
    """What the model hands to an objective, all in float32.

    context: encoder outputs of the context patches. predicted, target: the predictor's outputs and the
    (normalised) target encoder outputs for the T patches of each of the M blocks; target has no gradient.
    Of two views: M = 2 blocks of T = 1 pooled embedding each, no context, and as target the other view.
    """

    context: Float[Tensor, "B C D"]
    predicted: Float[Tensor, "B M T D"]
    target: Float[Tensor, "B M T D"]


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise and its unweighted terms (detached), by name."""

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]


@runtime_checkable
class MaskSampler(Protocol):
    """Masks as a pure function of (seed, step, sample): no state to save, any slice of a batch on its own."""

    def __call__(self, step: int, first: int, count: int) -> Masks:
        """Masks for samples first .. first + count - 1 of the global batch of this step."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Anything that maps images to patch embeddings."""

    @property
    def width(self) -> int:
        """Number of features D of an embedding."""
        ...

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Patch embeddings of normalised images."""
        ...
