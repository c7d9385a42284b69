"""The projector (VICReg's expander): from pooled embeddings to the space in which they are regularised."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from cjepa.ranks import gather
from cjepa.types import Part


class ProjectorConfig(Part):
    """An MLP shared by all views; the paper does not state its shape, VICReg's has three layers with batch norm."""

    depth: int = Field(3, ge=0, le=8)
    """Number of linear layers; 0 regularises the pooled embeddings themselves."""
    width: int = Field(2048, ge=1)
    """Features of hidden layers and output."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation between layers."""


class Projector(nn.Module):
    """Linear layers with norm and ReLU between them; statistics always come from the batch at hand."""

    def __init__(self, config: ProjectorConfig, inputs: int) -> None:
        super().__init__()
        sizes = [inputs] + [config.width] * config.depth
        layers: list[nn.Module] = []
        for index in range(config.depth):
            last = index == config.depth - 1
            layers.append(nn.Linear(sizes[index], sizes[index + 1], bias=last or config.norm != "batch"))
            if not last:
                layers += [_norm(config.norm, sizes[index + 1]), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def initialise(self, generator: torch.Generator) -> None:
        """He-normal weights, zero biases; norms 1 and 0."""
        fill(self.layers, generator)

    def forward(self, pooled: Float[Tensor, "B M D"]) -> Float[Tensor, "B M Z"]:
        """Project M views of B images; batch norm sees the B * M rows together."""
        output: Tensor = self.layers(pooled.flatten(0, 1))
        return output.unflatten(0, pooled.shape[:2])


class ProjectedObjective(nn.Module):
    """Base of the objectives that regularise what a projector makes of pooled embeddings.

    Everything after the pooling is computed from the images of all ranks, on every rank: batch norm's and VICReg's
    statistics are those of the global batch, however it is divided.
    """

    def __init__(self, config: ProjectorConfig, inputs: int) -> None:
        super().__init__()
        self.projector = Projector(config, inputs)

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the projector's weights."""
        self.projector.initialise(generator)

    def project(self, pooled: Float[Tensor, "b M D"]) -> Float[Tensor, "B M Z"]:
        """The projected views of the images of all ranks, from the pooled embeddings of this rank's."""
        output: Tensor = self.projector(gather(pooled))
        return output


@torch.no_grad()
def fill(layers: nn.Sequential, generator: torch.Generator) -> None:
    """He-normal weights, zero biases; norms 1 and 0."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=(2.0 / layer.in_features) ** 0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def _norm(kind: Literal["batch", "layer", "none"], width: int) -> nn.Module:
    match kind:
        case "batch":
            return nn.BatchNorm1d(width, track_running_stats=False)
        case "layer":
            return nn.LayerNorm(width)
        case "none":
            return nn.Identity()
