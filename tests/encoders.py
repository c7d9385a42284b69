"""Small encoders with weights far from the start, so that no difference is hidden by small branches."""

import torch

from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder

CONFIG = EncoderConfig(width=48, depth=3, heads=4, patch_size=4)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def transformer(config: EncoderConfig = CONFIG, seed: int = 0) -> VisionTransformer:
    built = VisionTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    built.initialise(generator)
    for parameter in built.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return built.eval()


def pretrained(
    config: EncoderConfig = CONFIG, size: tuple[int, int] = (24, 24), crop: float = 1.0, seed: int = 0
) -> PretrainedEncoder:
    return PretrainedEncoder(transformer(config, seed), size, MEAN, STD, crop).requires_grad_(False).eval()


def pixels(count: int = 2, height: int = 24, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
