"""Files of torch.save: the checkpoints of Meta's I-JEPA, and plain state dictionaries of the same layout.

A released I-JEPA checkpoint (.pth.tar) is a dictionary with `encoder`, `target_encoder` and `predictor`, whose names
begin with `module.`, beside the optimizer's state and the epoch. The predictor is not read.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cjepa.errors import InputError
from cjepa.models.weights.contents import Weights, recognise
from cjepa.models.weights.names import POSITIONS, from_vit
from cjepa.models.weights.reading import as_weights, read_torch

_PREFIX = "module."
_WRAPPERS = ("state_dict", "model")


def read_torch_file(path: Path, heads: int | None) -> Weights:
    """The encoders of a file of torch.save; InputError lists whatever does not fit."""
    content = read_torch(path)
    parts = {name: content[name] for name in ("target_encoder", "encoder") if isinstance(content.get(name), dict)}
    if not parts:
        return read_vit(_unwrapped(content), path, f"{path}", heads)
    found = {name: read_vit(part, path, f"{path}: {name}", heads) for name, part in parts.items()}
    target = found.get("target_encoder") or found["encoder"]
    context = found.get("encoder") or target
    if context.config != target.config:
        raise InputError(f"{path}: encoder and target_encoder are of different shapes")
    return replace(target, format="I-JEPA checkpoint", context=context.target)


def read_vit(content: Mapping[Any, Any], path: Path, origin: str, heads: int | None) -> Weights:
    """The encoder of a state dictionary with the names of Meta's and timm's vision transformers."""
    named = {name.removeprefix(_PREFIX) if isinstance(name, str) else name: value for name, value in content.items()}
    weights: dict[str, Tensor] = as_weights(named, path)
    positions = weights.pop(POSITIONS, None)
    return recognise("vision transformer weights", from_vit(weights), positions, origin, heads)


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), content)
