"""The encoder against transformers' IJepaModel with the same weights."""

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from cjepa.models import VisionTransformer  # noqa: E402
from cjepa.models.weights.names import from_transformers, to_transformers  # noqa: E402
from tests.encoders import transformer as encoder  # noqa: E402


def peer(encoder: VisionTransformer, height: int, width: int) -> nn.Module:
    """IJepaModel with the encoder's weights; every one of its parameters is set, and all of ours are used."""
    config = encoder.config
    model = transformers.IJepaModel(
        transformers.IJepaConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            image_size=(height, width),
            patch_size=config.patch_size,
            num_channels=3,
            qkv_bias=True,
        )
    )
    names = [name for name, _ in model.named_parameters()]
    grid = (height // config.patch_size, width // config.patch_size)
    model.load_state_dict(to_transformers(encoder.state_dict(), names, config, grid))  # strict
    back = from_transformers(dict(model.named_parameters()))
    assert back.keys() - {"embeddings.position_embeddings"} == encoder.state_dict().keys()
    return model.eval()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (16, 32)])
@torch.no_grad()
def test_patch_embeddings_are_equal(height: int, width: int) -> None:
    built = encoder()
    images = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))
    theirs = peer(built, height, width)(images).last_hidden_state
    torch.testing.assert_close(built(images), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(built.embed(images), theirs.mean(dim=1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_weight_would_be_seen() -> None:
    built = encoder()
    model = peer(built, 24, 24)
    built.blocks[1].attn.proj.bias[0] += 1e-2
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    assert (built(images) - model(images).last_hidden_state).abs().max() > 1e-4
