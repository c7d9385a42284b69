"""The encoder that users load: it prepares images by itself."""

import torch

from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.models.vit import EncoderConfig, VisionTransformer

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def pretrained() -> PretrainedEncoder:
    encoder = VisionTransformer(EncoderConfig(width=16, depth=1, heads=2, patch_size=4))
    encoder.initialise(torch.Generator().manual_seed(0))
    return PretrainedEncoder(encoder, (8, 12), MEAN, STD)


def bytes_of_images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 8, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_normalise_subtracts_the_mean_and_divides_by_the_std_of_each_channel() -> None:
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    images[:, 0] = 255
    normal = normalise(images, MEAN, STD)
    expected = torch.tensor([(1 - 0.5) / 0.2, -0.4 / 0.25, -0.3 / 0.5])
    torch.testing.assert_close(normal, expected.view(1, 3, 1, 1).expand(1, 3, 2, 2))


def test_bytes_and_normalised_floats_give_the_same_embeddings() -> None:
    encoder, images = pretrained(), bytes_of_images()
    assert torch.equal(encoder(images), encoder(normalise(images, MEAN, STD)))
    assert torch.equal(encoder(images), encoder.encoder(normalise(images, MEAN, STD)))


def test_an_embedding_is_the_mean_over_patches() -> None:
    encoder, images = pretrained(), bytes_of_images()
    assert encoder(images).shape == (2, 6, 16)
    torch.testing.assert_close(encoder.embed(images), encoder(images).mean(dim=1))
    assert (encoder.width, encoder.patch_size, encoder.image_size) == (16, 4, (8, 12))
