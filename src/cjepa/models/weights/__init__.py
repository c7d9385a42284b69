"""Encoder weights from elsewhere, read without running anything in them; one file per format."""

from pathlib import Path
from typing import Literal, assert_never

from cjepa.errors import InputError
from cjepa.models.weights.contents import Preparation, Weights
from cjepa.models.weights.folder import CONFIG, FORMAT_KEY, read_folder
from cjepa.models.weights.meta import read_torch_file
from cjepa.models.weights.reading import read_json
from cjepa.models.weights.timm import read_safetensors_file, read_timm_folder
from cjepa.models.weights.transformers import MODEL_TYPE, read_transformers_folder

__all__ = ["Preparation", "Weights", "holds_weights", "open_weights"]

Format = Literal["folder", "transformers", "timm", "safetensors", "torch"]
_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")


def holds_weights(path: Path) -> bool:
    """Whether the path is a file of weights or a folder with the config of one; run folders are not."""
    return path.is_file() or (path / CONFIG).is_file()


def open_weights(path: Path, heads: int | None = None) -> Weights:
    """The encoder in a file or folder of any known format; InputError lists everything that does not fit.

    Formats: our folder; transformers' IJepaModel; timm's vision transformers without class token, as a folder or a
    .safetensors file; Meta's I-JEPA checkpoints and state dictionaries of torch.save. heads: number of attention
    heads, for files that do not name it and widths that are those of no named size.
    """
    values = read_json(path / CONFIG) if path.is_dir() else {}
    format_ = _format(path, values)
    match format_:
        case "folder":
            return read_folder(path, values)
        case "transformers":
            return read_transformers_folder(path, values)
        case "timm":
            return read_timm_folder(path, values, heads)
        case "safetensors":
            return read_safetensors_file(path, heads)
        case "torch":
            return read_torch_file(path, heads)
        case _:
            assert_never(format_)


def _format(path: Path, values: dict[str, object]) -> Format:
    if path.is_dir():
        if FORMAT_KEY in values:
            return "folder"
        if values.get("model_type") == MODEL_TYPE:
            return "transformers"
        if "architecture" in values:
            return "timm"
        raise InputError(
            f"{path / CONFIG} is of no known encoder: it has no {FORMAT_KEY}, no model_type {MODEL_TYPE} and no timm "
            "architecture; give a folder that cjepa, transformers (IJepaModel) or timm wrote"
        )
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in _TORCH_SUFFIXES:
        return "torch"
    raise InputError(
        f"{path} is no file of weights by its name; known are .safetensors, {', '.join(_TORCH_SUFFIXES)}"
        if path.exists()
        else f"{path} does not exist; check the path"
    )
