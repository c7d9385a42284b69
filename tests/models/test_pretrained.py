"""The encoder that users load: it prepares images by itself."""

from pathlib import Path

import pytest
import torch

from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.models.vit import MOST_GRIDS, EncoderConfig, VisionTransformer, patchify
from cjepa.models.weights import open_weights
from cjepa.models.weights.folder import write_folder

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


def test_integers_that_are_no_bytes_are_refused() -> None:
    """They would be taken for normalised images, which are 100 times as small."""
    for kind in (torch.int64, torch.int32, torch.bool):
        with pytest.raises(ValueError, match=r"neither uint8 pixels nor normalised floats"):
            pretrained()(bytes_of_images().to(kind))


def test_an_embedding_is_the_mean_over_patches() -> None:
    encoder, images = pretrained(), bytes_of_images()
    assert encoder(images).shape == (2, 6, 16)
    torch.testing.assert_close(encoder.embed(images), encoder(images).mean(dim=1))
    assert (encoder.width, encoder.patch_size, encoder.image_size) == (16, 4, (8, 12))


# --- any size, either precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 4), (12, 8), (64, 20), (4, 60)])
def test_any_size_and_aspect_ratio(height: int, width: int) -> None:
    """Positions are those of the grid at hand, written here as in MAE: columns, then rows."""
    encoder = pretrained()
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    rows, columns = height // 4, width // 4
    assert encoder(images).shape == (2, rows * columns, 16)
    transformer = encoder.encoder
    tokens = transformer.embed_patches(images) - transformer.patch_projection(patchify(images, 4))
    waves = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        expected = torch.cat([f(place * waves) for place in (column, row) for f in (torch.sin, torch.cos)]).float()
        torch.testing.assert_close(tokens[0, index], expected, atol=1e-5, rtol=1e-5)


def test_the_training_size_is_not_changed_by_others_in_between() -> None:
    encoder, images = pretrained(), bytes_of_images()
    before = encoder(images)
    for side in range(1, 100):
        encoder(torch.zeros(1, 3, 4, 4 * side))
    assert torch.equal(encoder(images), before)
    assert len(encoder.encoder._positions) <= MOST_GRIDS, "images of ever other sizes must not fill the memory"


def test_a_crop_of_the_grid_has_the_same_positions() -> None:
    """The positions of a larger grid continue those of the training's; they are not stretched over it."""
    transformer = pretrained().encoder
    small = transformer.positions((2, 3), torch.device("cpu")).reshape(2, 3, 16)
    large = transformer.positions((5, 7), torch.device("cpu")).reshape(5, 7, 16)
    torch.testing.assert_close(large[:2, :3], small, atol=0, rtol=0)


def test_half_precision_stays_near() -> None:
    encoder, images = pretrained(), bytes_of_images()
    exact = encoder(images)
    half = encoder.bfloat16()(images)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.1 * exact.std()
    torch.testing.assert_close(encoder.float()(images), exact, atol=0.1, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_on_a_gpu(kind: torch.dtype) -> None:
    encoder, images = pretrained(), bytes_of_images()
    exact = encoder(images)
    found = encoder.to("cuda", kind)(images.cuda())
    assert found.is_cuda
    assert (found.float().cpu() - exact).abs().max() < (0.1 if kind == torch.bfloat16 else 1e-3) * exact.std()


def test_weights_of_a_file_become_an_encoder(tmp_path: Path) -> None:
    encoder = pretrained()
    write_folder(tmp_path, encoder.encoder.config, encoder.preparation, encoder.encoder.state_dict())
    again = PretrainedEncoder.of(open_weights(tmp_path))
    assert again.digest() == encoder.digest()
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with torch.no_grad():
        again.encoder.norm.bias[0] += 1
    assert again.digest() != encoder.digest()
