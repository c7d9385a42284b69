"""The encoder: patches, positions, hidden pixels and initial weights."""

import copy
import pickle

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cjepa.models.positions import sincos_positions
from cjepa.models.vit import SIZES, EncoderConfig, VisionTransformer, gather_patches, patchify

CONFIG = EncoderConfig(width=32, depth=2, heads=4, patch_size=4)


def encoder(config: EncoderConfig = CONFIG) -> VisionTransformer:
    built = VisionTransformer(config)
    built.initialise(torch.Generator().manual_seed(0))
    return built


def images(batch: int = 3, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def some_patches(batch: int, patches: int, kept: int) -> Tensor:
    """Other sorted indices for each image."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(patches, generator=generator)[:kept].sort().values for _ in range(batch)])


def test_patches_are_cut_row_by_row_and_flattened_channel_first() -> None:
    given = images()
    patches = patchify(given, 4)
    assert patches.shape == (3, 4 * 6, 3 * 16)
    for row in range(4):
        for column in range(6):
            expected = given[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].flatten(1)
            assert torch.equal(patches[:, row * 6 + column], expected)


def test_the_patch_projection_equals_a_convolution() -> None:
    built, given = encoder(), images()
    kernel = built.patch_projection.weight.reshape(32, 3, 4, 4)
    expected = torch.nn.functional.conv2d(given, kernel, built.patch_projection.bias, stride=4).flatten(2).mT
    torch.testing.assert_close(built.embed_patches(given) - sincos_positions(4, 6, 32), expected)


@pytest.mark.parametrize(("height", "width"), [(15, 24), (16, 22), (3, 3)])
def test_sides_that_the_patch_does_not_divide_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width} pixels cannot be cut into patches of 4; resize or crop"):
        encoder()(images(height=height, width=width))


def test_one_encoder_takes_images_of_any_size() -> None:
    """Each with the positions of its own grid, also where two grids have as many patches."""
    built = encoder()
    for height, width in [(16, 24), (24, 16), (8, 8), (16, 24)]:
        given = images(2, height, width)
        assert built(given).shape == (2, height * width // 16, 32)
        assert torch.equal(built(given), encoder()(given))
        assert torch.equal(built.embed(given), built(given).mean(dim=1))


def test_gathered_patches_are_those_of_each_images_own_indices() -> None:
    patches = images(2, 4, 8).flatten(2).mT  # [2, 32, 3]
    indices = some_patches(2, 32, 5)
    gathered = gather_patches(patches, indices)
    for image in range(2):
        assert torch.equal(gathered[image], patches[image, indices[image]])


def test_kept_patches_equal_the_gathered_tokens_through_the_blocks() -> None:
    """Projection and position of a patch do not change by being kept; the blocks see the kept ones alone."""
    built, given, keep = encoder(), images(), some_patches(3, 24, 10)
    tokens = gather_patches(built.embed_patches(given), keep)
    torch.testing.assert_close(built.embed_patches(given, keep), tokens)
    for block in built.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(built(given, keep=keep), built.norm(tokens))


def test_keeping_all_patches_changes_nothing() -> None:
    built, given = encoder(), images()
    torch.testing.assert_close(built(given, keep=torch.arange(24).expand(3, -1)), built(given))


def test_the_context_encoder_never_sees_hidden_pixels() -> None:
    """Not even a NaN in every hidden patch changes a bit of the output; changing a kept one does."""
    built, given, keep = encoder(), images(), some_patches(3, 24, 10)
    before = built(given, keep=keep)
    hidden = torch.ones(3, 24, dtype=torch.bool).scatter(1, keep, False)
    pixels = hidden.reshape(3, 1, 4, 6).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.equal(built(torch.where(pixels, torch.nan, given), keep=keep), before)
    assert not torch.isclose(built(torch.where(pixels, given, given + 1), keep=keep), before).any()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    built, given = encoder(), images()
    changed = given.clone()
    changed[1] += 1
    difference = (built(changed) - built(given)).abs().amax(dim=(1, 2))
    assert difference[1] > 0.1
    torch.testing.assert_close(difference[[0, 2]], torch.zeros(2), atol=1e-5, rtol=0)


def test_embeddings_know_where_a_patch_is() -> None:
    same_everywhere = torch.ones(1, 3, 16, 24)
    assert encoder()(same_everywhere)[0].std(dim=0).min() > 0.01
    blind = encoder(CONFIG.model_copy(update={"position_scale": 0.0}))(same_everywhere)[0]
    assert blind.std(dim=0).max() < 1e-5


def test_the_position_scale_multiplies_the_positions() -> None:
    scaled = encoder(CONFIG.model_copy(update={"position_scale": 0.25}))
    difference = scaled.embed_patches(images()) - encoder().embed_patches(images())
    torch.testing.assert_close(difference, (-0.75 * sincos_positions(4, 6, 32)).expand(3, -1, -1))


@pytest.mark.parametrize("rescale_depth", [False, True])
@pytest.mark.parametrize("patch_projection", ["reference", "unit_variance"])
def test_initialise_forgets_no_parameter(patch_projection: str, rescale_depth: bool) -> None:
    config = CONFIG.model_copy(update={"patch_projection": patch_projection, "rescale_depth": rescale_depth})
    built = VisionTransformer(config)
    for parameter in built.parameters():
        parameter.data.fill_(torch.nan)
    built.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in built.parameters())


def test_initial_weights_are_those_of_the_paper() -> None:
    built = encoder(EncoderConfig(width=192, depth=2, heads=3, patch_size=8))
    for name, parameter in built.named_parameters():
        if parameter.ndim == 2:
            assert parameter.abs().max() <= 0.06, name
            assert parameter.std().item() == pytest.approx(0.02 * 0.9866, rel=0.03), name
        else:
            assert parameter.eq(1.0 if "norm" in name and name.endswith("weight") else 0.0).all(), name


def test_a_unit_variance_projection_keeps_the_variance_of_the_pixels() -> None:
    config = EncoderConfig(width=192, depth=1, heads=3, patch_size=4)
    pixels = images(8, 32, 32)
    projected = {
        kind: encoder(config.model_copy(update={"patch_projection": kind, "position_scale": 0.0}))
        .embed_patches(pixels)
        .var()
        .item()
        for kind in ("unit_variance", "reference")
    }
    assert projected["unit_variance"] == pytest.approx(1, abs=0.1)
    assert projected["reference"] == pytest.approx(48 * 0.02**2, rel=0.1)


def test_depth_rescaling_changes_only_the_ends_of_the_branches() -> None:
    plain, rescaled = encoder(), encoder(CONFIG.model_copy(update={"rescale_depth": True}))
    for (name, before), after in zip(plain.named_parameters(), rescaled.parameters(), strict=True):
        factor = 1.0
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            factor = (2 * (int(name.split(".")[1]) + 1)) ** -0.5
        torch.testing.assert_close(after, before * factor, msg=name)


def test_an_encoder_that_evaluated_can_still_be_trained_copied_and_sent() -> None:
    """Positions made under inference mode are used in training later."""
    built = encoder()
    with torch.inference_mode():
        expected = built(images())
    built(images(), keep=some_patches(3, 24, 10)).square().mean().backward()
    assert built.patch_projection.weight.grad is not None
    torch.testing.assert_close(copy.deepcopy(built)(images()), expected.clone())
    torch.testing.assert_close(pickle.loads(pickle.dumps(built))(images()), expected.clone())


def test_named_sizes_are_those_of_the_paper() -> None:
    """Parameters of a ViT with a 16-pixel patch, without class token and learned positions, in millions."""
    millions = {"tiny": 5.5, "small": 21.6, "base": 85.6, "large": 303.1, "huge": 630.8}
    for name, expected in millions.items():
        width, depth, _ = SIZES[name]
        config = EncoderConfig(**EncoderConfig.named(name))
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in VisionTransformer(config).parameters())
        assert count / 1e6 == pytest.approx(expected, rel=0.005), name
        assert (config.width, config.depth) == (width, depth)


@pytest.mark.parametrize("keys", [{"width": 30}, {"width": 32, "heads": 5}, {"depth": 0}, {"patch_size": 0}])
def test_nonsense_is_refused(keys: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        EncoderConfig.model_validate(keys)
