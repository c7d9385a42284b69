"""An encoder that knows how its images have to be prepared: what `cjepa.load_encoder` returns."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from cjepa.models.vit import VisionTransformer
from cjepa.models.weights import Preparation, Weights
from cjepa.models.weights.contents import Channels, digest_of


class PretrainedEncoder(nn.Module):
    """A vision transformer with the image size and the normalisation that it was trained with.

    image_size: height and width of the training images in pixels; images of any size and aspect ratio that the patch
    size divides will do, since positions are computed for the grid at hand. evaluation_crop: share of the shorter
    side that the centre crop for evaluation covers. Move it with `.to(device)`, and to half precision with
    `.bfloat16()`; outputs have the precision of the weights.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        image_size: tuple[int, int],
        mean: Channels,
        std: Channels,
        evaluation_crop: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.evaluation_crop = evaluation_crop

    @classmethod
    def of(cls, weights: Weights, which: Literal["target", "context"] = "target") -> "PretrainedEncoder":
        """The encoder that was read from a file, frozen."""
        transformer = VisionTransformer(weights.config)
        transformer.load_state_dict(weights.target if which == "target" else weights.context)
        prepared = weights.preparation
        built = cls(transformer, prepared.image_size, prepared.mean, prepared.std, prepared.evaluation_crop)
        return built.requires_grad_(False).eval()

    @property
    def preparation(self) -> Preparation:
        """How images become inputs."""
        return Preparation(self.image_size, self.mean, self.std, self.evaluation_crop)

    @property
    def width(self) -> int:
        """Features D of an embedding."""
        return self.encoder.width

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; it must divide the sides of the images."""
        return self.encoder.patch_size

    def digest(self) -> str:
        """A sha256 of the weights."""
        return digest_of(self.encoder.state_dict())

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Patch embeddings, row by row. uint8 images are normalised here; floats must be normalised already.

        ValueError for other integers, of which nothing tells whether they are pixels.
        """
        if images.dtype == torch.uint8:
            images = normalise(images, self.mean, self.std)
        elif not images.is_floating_point():
            raise ValueError(
                f"images of {images.dtype} are neither uint8 pixels nor normalised floats; give pixels as "
                "images.to(torch.uint8)"
            )
        return self.encoder(images.to(self.encoder.patch_projection.weight.dtype))

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """One embedding per image: the mean over its patches."""
        return self(images).mean(dim=1)


def normalise(images: UInt8[Tensor, "B 3 H W"], mean: Channels, std: Channels) -> Float[Tensor, "B 3 H W"]:
    """float32 pixels in [0, 1] less the mean, over the standard deviation, on the images' device."""
    return (images.float() / 255 - _channels(mean, images.device)) / _channels(std, images.device)


def _channels(values: Channels, device: torch.device) -> Float[Tensor, "3 1 1"]:
    """Filled in on the device: copied to a GPU, they would make the host wait for all that it still has to do."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
