"""The joint-embedding predictive architecture: encoder, its moving average as target encoder, and predictor."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cjepa.models.predictor import Predictor, PredictorConfig
from cjepa.models.vit import EncoderConfig, VisionTransformer, gather_patches
from cjepa.ranks import mean
from cjepa.types import Embeddings, Masks, Part

TARGET_EPSILON = 1e-5


class TargetConfig(Part):
    """What the predictor has to predict."""

    normalization: Literal["layer", "batch", "none"] = "layer"
    """Normalise targets over the features of each patch (layer: the paper), over the batch per position, or not."""
    gradient: bool = False
    """Take targets from the encoder itself, with gradient: collapses; only for studying that."""


class ModelConfig(Part):
    """Encoder, predictor and targets."""

    encoder: EncoderConfig = Field(default_factory=lambda: EncoderConfig())
    """The vision transformer that is trained."""
    predictor: PredictorConfig = Field(default_factory=lambda: PredictorConfig())
    """The transformer that predicts target blocks."""
    target: TargetConfig = Field(default_factory=lambda: TargetConfig())
    """What the predictor has to predict."""
    start: Path | None = None
    """Weights to go on from instead of random ones, for encoder and target encoder; the predictor starts anew. A run
    folder, what cjepa export wrote as safetensors, transformers or timm, an I-JEPA checkpoint (.pth.tar), or weights of
    transformers or timm."""


class JEPA(nn.Module):
    """Context encoder f, target encoder f' (moving average of f, never given gradients) and predictor g."""

    def __init__(self, config: ModelConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(config.encoder)
        self.predictor = Predictor(config.predictor, config.encoder.width, config.encoder.heads, grid)
        self.target_encoder = VisionTransformer(config.encoder).requires_grad_(False)
        self.target_encoder.load_state_dict(self.encoder.state_dict())

    def initialise(self, seed: int) -> None:
        """Fill all weights as a function of the seed; the target encoder starts as a copy of the encoder."""
        generator = torch.Generator().manual_seed(seed)
        self.encoder.initialise(generator)
        self.predictor.initialise(generator)
        self.target_encoder.load_state_dict(self.encoder.state_dict())

    @property
    def learned(self) -> dict[str, VisionTransformer | Predictor]:
        """The parts that the optimizer changes, by the names of their files in a checkpoint."""
        return {"encoder": self.encoder, "predictor": self.predictor}

    def forward(
        self, images: Float[Tensor, "B 3 H W"], masks: Masks, target: Float[Tensor, "B M T D"] | None = None
    ) -> Embeddings:
        """Context, predicted and target embeddings, in float32; `target` is not computed where it is given."""
        context = self.encoder(images, keep=masks.context)
        return Embeddings(
            context=at_least_float32(context),
            predicted=at_least_float32(self.predictor(context, masks)),
            target=gather_blocks(self.targets([images]), masks.targets) if target is None else target,
        )

    def targets(self, parts: Iterable[Float[Tensor, "b 3 H W"]]) -> Float[Tensor, "B N D"]:
        """Normalised target embeddings of all patches of a batch, which may come in parts."""
        encoder = self.encoder if self.config.target.gradient else self.target_encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.target.gradient):
            return self._normalised(torch.cat([at_least_float32(encoder(images)) for images in parts]))

    def update_target(self, momentum: float) -> None:
        """f' <- momentum * f' + (1 - momentum) * f."""
        follow(self.target_encoder, self.encoder, momentum)

    def _normalised(self, targets: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        match self.config.target.normalization:
            case "layer":
                return F.layer_norm(targets, targets.shape[-1:])
            case "batch":
                centred = targets - mean(targets.mean(dim=0))
                return centred / (mean(centred.square().mean(dim=0)) + TARGET_EPSILON).sqrt()
            case "none":
                return targets


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move the weights of an average towards those of a module of the same shape."""
    get_ema_multi_avg_fn(momentum)(list(average.parameters()), list(module.parameters()), 0)


def at_least_float32(embeddings: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision becomes float32; losses and statistics need it."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def gather_blocks(patches: Float[Tensor, "B N D"], targets: Int[Tensor, "B M T"]) -> Float[Tensor, "B M T D"]:
    """The patches of each target block of each image."""
    return gather_patches(patches, targets.flatten(1)).unflatten(1, targets.shape[1:])
