"""The transformer block: its last rows alone, and the initial weights of everything built from it."""

import itertools

import pytest
import torch
from torch import nn

from cjepa.models.blocks import Attention, Block, cut_normal, initialise, rescale_by_depth


def block(width: int = 16, heads: int = 4) -> Block:
    built = Block(width, heads, mlp_ratio=2.0)
    initialise(built.modules(), torch.Generator().manual_seed(0))
    for parameter in built.parameters():  # far from the start, so that every part matters
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return built.double()


def tokens(batch: int = 2, count: int = 9, width: int = 16) -> torch.Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("queries", [1, 4, 9])
def test_the_last_rows_alone_equal_those_of_the_full_computation(queries: int) -> None:
    built, given = block(), tokens()
    torch.testing.assert_close(built(given, queries=queries), built(given)[:, -queries:])


def test_the_block_equals_its_formula() -> None:
    """y = x + proj(attention(norm1(x))); z = y + fc2(gelu(fc1(norm2(y)))), written out for one head at a time."""
    built, given = block(), tokens()
    normed = built.norm1(given)
    weight, bias = built.attn.qkv.weight, built.attn.qkv.bias
    parts = []
    for head in range(4):
        rows = [slice(part * 16 + head * 4, part * 16 + head * 4 + 4) for part in range(3)]
        query, key, value = (normed @ weight[row].T + bias[row] for row in rows)
        parts.append((query @ key.transpose(1, 2) / 2.0).softmax(dim=-1) @ value)
    middle = given + built.attn.proj(torch.cat(parts, dim=-1))
    hidden = built.mlp.fc1(built.norm2(middle))
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(built(given), middle + built.mlp.fc2(gelu))


def test_tokens_may_come_in_any_order() -> None:
    built, given = block(), tokens()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(built(given[:, order]), built(given)[:, order])


def test_cut_normal_has_its_std_and_no_value_beyond_three_sigma() -> None:
    weight = torch.empty(500, 500)
    cut_normal(weight, 0.02, torch.Generator().manual_seed(0))
    assert weight.abs().max() <= 0.06
    assert weight.abs().max() > 0.058  # cut at 3 sigma, not far below
    assert weight.std().item() == pytest.approx(0.02 * 0.9866, rel=0.01)  # the std of a normal cut at 3 sigma
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)


def test_initialise_fills_linear_layers_and_norms() -> None:
    modules = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    for parameter in modules.parameters():
        parameter.data.fill_(torch.nan)
    initialise(modules.modules(), torch.Generator().manual_seed(0))
    linear, norm = modules
    assert linear.weight.abs().max() <= 0.06
    assert linear.bias.eq(0).all()
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()


def test_rescaling_divides_the_last_layers_of_block_l_by_the_root_of_2_l() -> None:
    blocks = [block() for _ in range(3)]
    before = [b.attn.proj.weight.clone() for b in blocks], [b.mlp.fc2.weight.clone() for b in blocks]
    others = [b.attn.qkv.weight.clone() for b in blocks] + [b.mlp.fc1.weight.clone() for b in blocks]
    rescale_by_depth(blocks)
    for layer, b in enumerate(blocks, start=1):
        torch.testing.assert_close(b.attn.proj.weight * (2 * layer) ** 0.5, before[0][layer - 1])
        torch.testing.assert_close(b.mlp.fc2.weight * (2 * layer) ** 0.5, before[1][layer - 1])
    unchanged = [b.attn.qkv.weight for b in blocks] + [b.mlp.fc1.weight for b in blocks]
    assert all(itertools.starmap(torch.equal, zip(unchanged, others, strict=True)))


def test_heads_are_cut_from_neighbouring_features() -> None:
    attention = Attention(8, 2)
    query, key, value = attention.heads_of(torch.randn(1, 3, 8))
    assert query.shape == key.shape == value.shape == (1, 2, 3, 4)
