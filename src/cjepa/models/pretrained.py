"""An encoder that knows how its images have to be prepared: what `cjepa.load_encoder` returns."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from cjepa.models.vit import VisionTransformer

Channels = tuple[float, float, float]


class PretrainedEncoder(nn.Module):
    """A vision transformer with the image size and the normalisation that it was trained with."""

    def __init__(self, encoder: VisionTransformer, image_size: tuple[int, int], mean: Channels, std: Channels) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = image_size
        self.mean = mean
        self.std = std

    @property
    def width(self) -> int:
        """Features D of an embedding."""
        return self.encoder.width

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; it must divide the sides of the images."""
        return self.encoder.patch_size

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Patch embeddings, row by row. uint8 images are normalised here; floats must be normalised already."""
        if images.dtype == torch.uint8:
            images = normalise(images, self.mean, self.std)
        return self.encoder(images)

    def embed(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """One embedding per image: the mean over its patches."""
        return self(images).mean(dim=1)


def normalise(images: UInt8[Tensor, "B 3 H W"], mean: Channels, std: Channels) -> Float[Tensor, "B 3 H W"]:
    """float32 pixels in [0, 1] less the mean, over the standard deviation, on the images' device."""
    shift = torch.tensor(mean, device=images.device).view(3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - shift) / scale
