"""The encoder against timm's VisionTransformer with the same weights."""

import pytest
import torch

timm = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")

from cjepa.models.weights.names import to_vit  # noqa: E402
from tests.encoders import CONFIG, transformer  # noqa: E402


@torch.no_grad()
def test_patch_embeddings_and_their_mean_are_equal() -> None:
    ours = transformer()
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
    theirs.load_state_dict(to_vit(ours.state_dict(), CONFIG, (4, 8)))  # strict: every name is the same on both sides
    images = torch.randn(3, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.embed(images), theirs(images), atol=1e-5, rtol=1e-5)
