"""Two views of an image through one encoder: what VICReg and SimSiam train, without masks and without a predictor."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cjepa.models.jepa import ModelConfig, at_least_float32, follow
from cjepa.models.vit import VisionTransformer
from cjepa.types import Embeddings


class TwoViews(nn.Module):
    """Encoder f, and its moving average f', which teaches nothing here: it is what is evaluated, as in every run."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(config.encoder)
        self.target_encoder = VisionTransformer(config.encoder).requires_grad_(False)
        self.target_encoder.load_state_dict(self.encoder.state_dict())

    def initialise(self, seed: int) -> None:
        """Fill all weights as a function of the seed; the encoder starts as that of a JEPA with this seed."""
        self.encoder.initialise(torch.Generator().manual_seed(seed))
        self.target_encoder.load_state_dict(self.encoder.state_dict())

    @property
    def learned(self) -> dict[str, VisionTransformer]:
        """The parts that the optimizer changes, by the names of their files in a checkpoint."""
        return {"encoder": self.encoder}

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        second: Float[Tensor, "B 3 H W"],
        target: Float[Tensor, "B M T D"] | None = None,
    ) -> Embeddings:
        """The pooled patches of both views as two blocks of one embedding, in float32; the other view as target."""
        patches: Tensor = self.encoder(torch.cat([images, second]))
        pooled = at_least_float32(patches).mean(dim=1)
        views = torch.stack(pooled.chunk(2), dim=1).unsqueeze(2)
        return Embeddings(
            context=views.new_empty(len(images), 0, views.shape[-1]),
            predicted=views,
            target=views.detach().flip(1) if target is None else target,
        )

    def update_target(self, momentum: float) -> None:
        """f' <- momentum * f' + (1 - momentum) * f."""
        follow(self.target_encoder, self.encoder, momentum)
