"""The pre-norm transformer block shared by encoder and predictor, and its initialisation."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cjepa.models.attention import attend, attend_one_way, attention_weights
from cjepa.models.kernels import Linear, linear

NORM_EPSILON = 1e-6
INITIAL_STD = 0.02
_MOST_PROGRAMS = 64
"""Of one block in torch.compile, which runs what exceeds it uncompiled; its own limit of 8 is too few for two parts."""
CUT = 3.0
"""Initial weights are normal, cut at this many standard deviations."""


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "B N D"], queries: int | None = None, targets: tuple[int, int] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Attend from the last `queries` tokens (all by default) to all tokens.

        targets: number and length of the target blocks at the end, where attention is one-way (`attend_one_way`).
        """
        batch, count, width = tokens.shape
        rows = count if queries is None else queries
        query, key, value = self.heads_of(tokens) if queries is None else self._heads_of_last(tokens, rows)
        mixed = attend(query, key, value) if targets is None else attend_one_way(query, key, value, targets)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, rows, width))
        return projected

    def weights(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
        """The attention weights that `forward` mixes the values by, which the fused kernel does not show."""
        query, key, _ = self.heads_of(tokens)
        return attention_weights(query, key)

    def heads_of(self, tokens: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, heads, N, D / heads]."""
        batch, count, width = tokens.shape
        split = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _heads_of_last(self, tokens: Float[Tensor, "B N D"], rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same, but queries of the last rows alone."""
        batch, count, width = tokens.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        asking = linear(tokens[:, count - rows :].contiguous(), weight[:width], bias[:width])
        others = linear(tokens, weight[width:], bias[width:]).reshape(batch, count, 2, self.heads, width // self.heads)
        key, value = others.permute(2, 0, 3, 1, 4).unbind(0)
        return asking.unflatten(2, (self.heads, width // self.heads)).transpose(1, 2), key, value


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, int(width * ratio))
        self.fc2 = Linear(int(width * ratio), width)

    def forward(self, tokens: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Token-wise."""
        output: Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return output


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    recompute = False
    """Keep the input alone and compute the rest again in the backward pass: less memory, a third more work."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(
        self, tokens: Float[Tensor, "B N D"], queries: int | None = None, targets: tuple[int, int] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Outputs of the last `queries` tokens (all by default); the others serve as keys and values only.

        targets: number and length of the target blocks at the end, where attention is one-way.
        """
        given = tokens, queries, targets
        if self.recompute and torch.is_grad_enabled():
            output: Tensor = checkpoint(self._outputs, *given, use_reentrant=False, preserve_rng_state=False)
            return output
        return self._outputs(*given)

    def _outputs(
        self, tokens: Float[Tensor, "B N D"], queries: int | None, targets: tuple[int, int] | None
    ) -> Float[Tensor, "B Q D"]:
        rows = tokens if queries is None else tokens[:, tokens.shape[1] - queries :]
        rows = rows + self.attn(self.norm1(tokens), queries, targets)
        output: Tensor = rows + self.mlp(self.norm2(rows))
        return output


def compile_blocks(parts: Iterable[nn.Module]) -> None:
    """Let torch.compile make one program of each kind of block, in place; names and weights stay.

    Sequences are of another length in every step. torch notices at the second length and compiles once more, for all of
    them. Encoder and predictor, with gradient and without, all queries and the last ones: each is a program of its own.
    """
    # For the whole process: older versions of torch.compile have no such keyword.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_PROGRAMS)
    for part in parts:
        assert isinstance(part.blocks, nn.ModuleList)
        for block in part.blocks:
            block.compile()


@torch.no_grad()
def initialise(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    """Linear weights normal with std 0.02 cut at 3 sigma, biases 0; norms 1 and 0."""
    for module in modules:
        if isinstance(module, nn.Linear):
            cut_normal(module.weight, INITIAL_STD, generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def cut_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with a normal distribution of this std, cut at 3 sigma."""
    nn.init.trunc_normal_(weight, std=std, a=-CUT * std, b=CUT * std, generator=generator)


@torch.no_grad()
def rescale_by_depth(blocks: Iterable[nn.Module]) -> None:
    """Divide the last layer of each residual branch of block l (from 1) by sqrt(2 l)."""
    for layer, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_((2.0 * layer) ** 0.5)
        block.mlp.fc2.weight.div_((2.0 * layer) ** 0.5)
