"""Scaled dot-product attention, by the kernel that is fastest where it runs."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cjepa.models.kernels import takes_explicit_attention


def attend(
    query: Float[Tensor, "B heads Q E"],
    key: Float[Tensor, "B heads K E"],
    value: Float[Tensor, "B heads K E"],
) -> Float[Tensor, "B heads Q E"]:
    """softmax(q k^T / sqrt(E)) v."""
    if takes_explicit_attention(query):
        return attention_weights(query, key) @ value
    return F.scaled_dot_product_attention(query, key, value)


def attend_one_way(
    query: Float[Tensor, "B heads Q E"],
    key: Float[Tensor, "B heads K E"],
    value: Float[Tensor, "B heads K E"],
    targets: tuple[int, int],
) -> Float[Tensor, "B heads Q E"]:
    """The context attends to the context, each target block to the context and to itself.

    targets: number M and length T of the blocks, whose tokens are the last M T; those before are the context's. Queries
    are all tokens' or the target blocks' alone.
    """
    blocks, length = targets
    asked = blocks * length
    by_block = (_by_block(each, blocks, length) for each in (query[:, :, -asked:], key, value))
    answers = attend(*by_block).unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)
    if query.shape[2] == asked:
        return answers
    known = attend(*(each[:, :, :-asked] for each in (query, key, value)))
    # Token by token in memory, so that putting the heads together copies nothing.
    return torch.cat([known.transpose(1, 2), answers.transpose(1, 2)], dim=1).transpose(1, 2)


def _by_block(rows: Float[Tensor, "B heads N E"], blocks: int, length: int) -> Float[Tensor, "BM heads N_block E"]:
    """A sequence for each target block: the context's rows, if there are any, and its own."""
    context, own = rows.tensor_split([rows.shape[2] - blocks * length], dim=2)
    context = context.unsqueeze(1).expand(-1, blocks, -1, -1, -1)
    return torch.cat([context, own.unflatten(2, (blocks, length)).transpose(1, 2)], dim=3).flatten(0, 1)


def attention_weights(
    query: Float[Tensor, "B heads Q E"], key: Float[Tensor, "B heads K E"]
) -> Float[Tensor, "B heads Q K"]:
    """softmax(q k^T / sqrt(E)): each row sums to one."""
    queries, keys = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    # The scale is a factor of the product, which saves a pass over the queries; beta=0 leaves the zeros out.
    scores = torch.baddbmm(query.new_zeros(1, 1, 1), queries, keys, beta=0, alpha=query.shape[-1] ** -0.5)
    return scores.softmax(dim=-1).to(query.dtype).unflatten(0, query.shape[:2])


def attention_received(weights: Float[Tensor, "B heads Q K"]) -> Float[Tensor, "B K"]:
    """How much each token is attended to: the mean of its weights over all queries and heads; a row sums to one.

    Without a class token, whose attention is usually shown, this says which patches the others look at.
    """
    return weights.float().mean(dim=(1, 2))
