"""Both ways to compute attention give the same, and rows of weights sum to one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cjepa.models import attention
from cjepa.models.attention import attend, attention_weights


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
