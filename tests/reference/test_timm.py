"""The encoder against timm's VisionTransformer with the same weights."""

import pytest
import torch

timm = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")

from cjepa.models import EncoderConfig, VisionTransformer  # noqa: E402
from cjepa.models.positions import sincos_positions  # noqa: E402

CONFIG = EncoderConfig(width=48, depth=3, heads=4, patch_size=4)


@torch.no_grad()
def test_patch_embeddings_and_their_mean_are_equal() -> None:
    ours = VisionTransformer(CONFIG)
    generator = torch.Generator().manual_seed(0)
    ours.initialise(generator)
    for parameter in ours.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs = timm.VisionTransformer(
        img_size=(16, 32),
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=4,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        num_classes=0,
    ).eval()
    weights = ours.state_dict()
    projection = weights.pop("patch_projection.weight").reshape(48, 3, 4, 4)
    weights |= {
        "patch_embed.proj.weight": projection,
        "patch_embed.proj.bias": weights.pop("patch_projection.bias"),
        "pos_embed": sincos_positions(4, 8, 48)[None],
    }
    theirs.load_state_dict(weights)  # strict: every other name is the same on both sides
    images = torch.randn(3, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.embed(images), theirs(images), atol=1e-5, rtol=1e-5)
