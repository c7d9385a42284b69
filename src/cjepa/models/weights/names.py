"""What the weights of the same encoder are called elsewhere: by Meta's I-JEPA and timm, and by transformers."""

import re
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.models.positions import sincos_positions
from cjepa.models.vit import CHANNELS, EncoderConfig

POSITIONS = "pos_embed"
"""Name of the positions in Meta's and timm's files."""
TRANSFORMERS_POSITIONS = "embeddings.position_embeddings"

_PATCHES = {"patch_embed.proj.weight": "patch_projection.weight", "patch_embed.proj.bias": "patch_projection.bias"}

_TRANSFORMERS = {
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
_THIRD = re.compile(r"(.+)\[([012])\]")


def scaled_positions(config: EncoderConfig, grid: tuple[int, int]) -> Float[Tensor, "1 N D"]:
    """The positions of a grid as other libraries store them: as a weight."""
    return (sincos_positions(*grid, config.width) * config.position_scale)[None]


def from_vit(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's or timm's weights under our names; names without a counterpart, positions too, stay as they are."""
    return {_PATCHES.get(name, name): _flat(_PATCHES.get(name, name), value) for name, value in weights.items()}


def to_vit(weights: Mapping[str, Tensor], config: EncoderConfig, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Our weights as timm's VisionTransformer without class token and Meta's encoder call them."""
    theirs = {own: name for name, own in _PATCHES.items()}
    renamed = {theirs.get(name, name): _as_kernel(name, value, config) for name, value in weights.items()}
    return renamed | {POSITIONS: scaled_positions(config, grid)}


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' IJepaModel weights under our names; what has no counterpart keeps its name."""
    renamed = {_own_name(name): value for name, value in weights.items()}
    whole = {name: _flat(name, value) for name, value in renamed.items() if not _THIRD.fullmatch(name)}
    for name in dict.fromkeys(match[1] for each in renamed if (match := _THIRD.fullmatch(each))):
        thirds = {f"{name}[{index}]": renamed.get(f"{name}[{index}]") for index in range(3)}
        present = [value for value in thirds.values() if value is not None]
        if len(present) == 3 and all(value.shape[1:] == present[0].shape[1:] for value in present):
            whole[name] = torch.cat(present)
        else:  # reported as names that do not fit
            whole |= {third: value for third, value in thirds.items() if value is not None}
    return whole


def to_transformers(
    weights: Mapping[str, Tensor], names: Iterable[str], config: EncoderConfig, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Our weights under these names of an IJepaModel's parameters; KeyError where ours has no such weight."""
    values = {}
    for name in names:
        if name == TRANSFORMERS_POSITIONS:
            values[name] = scaled_positions(config, grid)
            continue
        own = _own_name(name)
        third = _THIRD.fullmatch(own)
        value = weights[third[1]].chunk(3)[int(third[2])] if third else weights[own]
        values[name] = _as_kernel(own, value, config)
    return values


def _own_name(name: str) -> str:
    """Our name of one of transformers' parameters, with [k] where it is a third of ours; itself without any."""
    module, _, kind = name.rpartition(".")
    for pattern, own in _TRANSFORMERS.items():
        if re.fullmatch(pattern, module):
            return re.sub(r"(.*?)(\[\d\])?$", rf"\1.{kind}\2", re.sub(pattern, own, module), count=1)
    return name


def _flat(name: str, value: Tensor) -> Tensor:
    """Convolution kernels of patches as the matrix that they are."""
    return value.flatten(1) if name == "patch_projection.weight" and value.ndim == 4 else value


def _as_kernel(name: str, value: Tensor, config: EncoderConfig) -> Tensor:
    size = config.patch_size
    shaped = value.reshape(config.width, CHANNELS, size, size) if name == "patch_projection.weight" else value
    return shaped.contiguous().clone()
