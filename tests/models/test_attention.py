"""Both ways to compute attention give the same, and rows of weights sum to one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cjepa.models import attention
from cjepa.models.attention import attend, attention_received, attention_weights
from cjepa.models.vit import EncoderConfig, VisionTransformer


def queries_keys_values(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    query, key, value = ((2 * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (3, 9)])
def test_explicit_attention_equals_the_fused_kernel(queries: int, keys: int) -> None:
    query, key, value = queries_keys_values(queries, keys, torch.float64)
    fused = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention_weights(query, key) @ value, fused)
    torch.testing.assert_close(attend(query, key, value), fused)


def test_half_precision_on_a_cpu_equals_full_precision_closely() -> None:
    query, key, value = queries_keys_values(7, 9, torch.bfloat16)
    output = attend(query, key, value)
    assert output.dtype == torch.bfloat16
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(output.double(), exact, atol=0.05, rtol=0.05)


def test_half_precision_on_a_cpu_avoids_the_slow_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Tensor) -> Tensor:
        raise AssertionError("3 to 4.5 times slower than the plain products")

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", refuse)
    attend(*queries_keys_values(4, 4, torch.bfloat16))
    with pytest.raises(AssertionError, match="slower"):
        attend(*queries_keys_values(4, 4))


def test_weights_are_positive_and_each_row_sums_to_one() -> None:
    query, key, _ = queries_keys_values(6, 11)
    weights = attention_weights(query, key)
    assert weights.shape == (2, 3, 6, 11)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 6))


def test_weights_of_large_scores_do_not_overflow() -> None:
    query = torch.full((1, 1, 2, 4), 1e4)
    assert attention_weights(query, query).tolist() == [[[[0.5, 0.5], [0.5, 0.5]]]]


def encoder_and_images() -> tuple[VisionTransformer, Tensor]:
    encoder = VisionTransformer(EncoderConfig(width=16, depth=3, heads=4, patch_size=4))
    encoder.initialise(torch.Generator().manual_seed(0))
    for parameter in encoder.parameters():  # far from uniform attention
        parameter.data.mul_(6.0)
    return encoder.double(), torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def test_the_last_block_rebuilt_from_its_weights_equals_the_encoder() -> None:
    encoder, images = encoder_and_images()
    embeddings, weights = encoder.with_attention(images)
    assert weights.shape == (2, 4, 6, 6)
    assert weights.std() > 0.05, "uniform weights would hide an error"
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 6, dtype=torch.float64))
    tokens = encoder.embed_patches(images)
    for block in encoder.blocks[:-1]:
        tokens = block(tokens)
    last = encoder.blocks[-1]
    value = last.attn.qkv(last.norm1(tokens))[..., 32:].reshape(2, 6, 4, 4).transpose(1, 2)
    tokens = tokens + last.attn.proj((weights @ value).transpose(1, 2).reshape(2, 6, 16))
    rebuilt = encoder.norm(tokens + last.mlp(last.norm2(tokens)))
    torch.testing.assert_close(embeddings, encoder(images))  # which takes the fused kernel
    torch.testing.assert_close(rebuilt, encoder(images))


def test_attention_received_is_the_column_mean_and_sums_to_one() -> None:
    query, key, _ = queries_keys_values(6, 6)
    weights = attention_weights(query, key)
    received = attention_received(weights)
    expected = sum(weights[:, head, row] for head in range(3) for row in range(6)) / 18
    torch.testing.assert_close(received, expected)
    torch.testing.assert_close(received.sum(dim=1), torch.ones(2))
