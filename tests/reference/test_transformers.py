"""The encoder against transformers' IJepaModel with the same weights."""

import re

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from cjepa.models import EncoderConfig, VisionTransformer  # noqa: E402
from cjepa.models.positions import sincos_positions  # noqa: E402

CONFIG = EncoderConfig(width=48, depth=3, heads=4, patch_size=4)
OURS = {
    r"embeddings\.patch_embeddings\.projection": "patch_projection",
    r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before": r"blocks.\1.norm1",
    r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after": r"blocks.\1.norm2",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.query|q_proj)": r"blocks.\1.attn.qkv[0]",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.key|k_proj)": r"blocks.\1.attn.qkv[1]",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.value|v_proj)": r"blocks.\1.attn.qkv[2]",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:output\.dense|o_proj)": r"blocks.\1.attn.proj",
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)": r"blocks.\1.mlp.fc1",
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:output\.dense|mlp\.fc2)": r"blocks.\1.mlp.fc2",
    r"layernorm": "norm",
}
"""Names of transformers' modules, of version 4 and 5, and of ours; [k] is the k-th third of the rows."""


def ours_of(name: str) -> str:
    """Our name of one of their parameters."""
    module, _, kind = name.rpartition(".")
    matches = [re.sub(pattern, own, module) for pattern, own in OURS.items() if re.fullmatch(pattern, module)]
    assert len(matches) == 1, f"{name} has {len(matches)} counterparts"
    return re.sub(r"(.*?)(\[\d\])?$", rf"\1.{kind}\2", matches[0], count=1)


def value(weights: dict[str, Tensor], name: str) -> Tensor:
    third = re.fullmatch(r"(.+)\[(\d)\]", name)
    return weights[third[1]].chunk(3)[int(third[2])] if third else weights[name]


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
    weights, used = encoder.state_dict(), set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "embeddings.position_embeddings":
                grid = (height // config.patch_size, width // config.patch_size)
                parameter.copy_(sincos_positions(*grid, config.width)[None])
            else:
                used.add(re.sub(r"\[\d\]$", "", ours_of(name)))
                parameter.copy_(value(weights, ours_of(name)).reshape(parameter.shape))
    assert used == set(weights)
    return model.eval()


def encoder() -> VisionTransformer:
    """With weights far from the small ones of the start, so that nothing is hidden by small branches."""
    built = VisionTransformer(CONFIG)
    generator = torch.Generator().manual_seed(0)
    built.initialise(generator)
    for parameter in built.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return built


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
