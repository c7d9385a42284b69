"""Out of here: an encoder in the formats of other libraries, each checked against the original before it counts."""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, assert_never

import torch
from pydantic import Field

from cjepa.errors import InputError
from cjepa.export.onnx_file import OnnxConfig, check_onnx, load_onnx, write_onnx
from cjepa.export.parity import Difference, ParityError, require
from cjepa.export.program import ProgramConfig, check_program, load_program, write_program
from cjepa.export.safetensors_folder import SafetensorsConfig, check_safetensors, load_safetensors, write_safetensors
from cjepa.export.timm_file import TimmConfig, check_timm, load_timm, write_timm
from cjepa.export.transformers_folder import (
    TransformersConfig,
    check_transformers,
    load_transformers,
    write_transformers,
)
from cjepa.models.pretrained import PretrainedEncoder

__all__ = [
    "Difference",
    "Export",
    "ExportConfig",
    "OnnxConfig",
    "ParityError",
    "ProgramConfig",
    "SafetensorsConfig",
    "TimmConfig",
    "TransformersConfig",
    "export_encoder",
]

AnyExport = SafetensorsConfig | TransformersConfig | TimmConfig | OnnxConfig | ProgramConfig
ExportConfig = Annotated[AnyExport, Field(discriminator="name")]
CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """What was written: the folder, its files, the differences that the check found, and Python that opens it."""

    folder: Path
    files: list[str]
    differences: list[Difference]
    usage: str


def export_encoder(
    config: AnyExport, encoder: PretrainedEncoder, folder: Path, card: Callable[[str], str] | None = None
) -> Export:
    """Write an encoder into a new folder and check it there; it appears, or is filled, only when everything fits.

    The encoder is float32 on the CPU. card: the model card, given the Python that opens the export; it becomes
    README.md. Raises InputError when the folder is not empty or an extra is missing, ParityError when the numbers
    differ; then nothing is left.
    """
    target = folder.expanduser()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target} exists already; choose a new or empty folder with --out")
    # Inside a folder that is there: it may be the working directory or a mount, which cannot be replaced by another.
    filled = target.is_dir()
    unfinished = target / _temporary("export") if filled else target.with_name(_temporary(target.name))
    try:
        unfinished.mkdir(parents=True)
        usage = usage_of(config, encoder, folder)
        if card is not None:
            shown = usage_of(config, encoder, Path(target.name))  # whose folders these are is nobody else's business
            (unfinished / CARD).write_text(card(shown), encoding="utf-8")
        with torch.inference_mode(False), torch.no_grad():
            differences = _write_and_check(config, encoder, unfinished)
        require(differences)
        if filled:
            for written in list(unfinished.iterdir()):
                written.rename(target / written.name)
        else:
            unfinished.rename(target)
    except ImportError as error:
        if config.name not in EXTRAS:
            raise
        raise InputError(
            f"export to {config.name} needs {error.name or error}, which is not installed; to have it: "
            f'pip install "cjepa[{EXTRAS[config.name]}]"'
        ) from error
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}; nothing was left there") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Export(target, sorted(path.name for path in target.iterdir()), differences, usage)


def _temporary(name: str) -> str:
    return f".tmp-{name}-{secrets.token_hex(4)}"


EXTRAS = {"transformers": "transformers", "timm": "timm", "onnx": "onnx"}
"""The extra that brings what a format needs; the others need none."""


def _write_and_check(config: AnyExport, encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    match config:
        case SafetensorsConfig():
            write_safetensors(encoder, folder)
            return check_safetensors(encoder, folder)
        case TransformersConfig():
            write_transformers(encoder, folder)
            return check_transformers(encoder, folder)
        case TimmConfig():
            write_timm(encoder, folder)
            return check_timm(encoder, folder)
        case OnnxConfig():
            write_onnx(config, encoder, folder)
            return check_onnx(encoder, folder)
        case ProgramConfig():
            write_program(encoder, folder)
            return check_program(encoder, folder)
        case _:
            assert_never(config)


def usage_of(config: AnyExport, encoder: PretrainedEncoder, folder: Path) -> str:
    """Python that opens an export."""
    match config:
        case SafetensorsConfig():
            return load_safetensors(folder)
        case TransformersConfig():
            return load_transformers(encoder, folder)
        case TimmConfig():
            return load_timm(encoder, folder)
        case OnnxConfig():
            return load_onnx(folder)
        case ProgramConfig():
            return load_program(folder)
        case _:
            assert_never(config)
