"""Tensors and JSON from files that nobody vouches for: nothing in them is run, and nothing grows beyond its file."""

import json
import mmap
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cjepa.errors import InputError

MOST_BYTES = 64 << 30
"""A torch file whose members claim more than this, or more than the file holds, is refused."""
MOST_JSON_BYTES = 1 << 20
_MOST_HEADER_BYTES = 30 + 2 * 0xFFFF  # of a member of a zip archive: its fields, its name and extra fields


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError when there is none, it is damaged or larger than a config ever is."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON_BYTES + 1)
        if len(content) > MOST_JSON_BYTES:
            raise InputError(f"{path} is larger than {MOST_JSON_BYTES:,} bytes; it is no configuration of a model")
        values = json.loads(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not valid JSON ({error}); get an undamaged copy") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object; it is no configuration of a model")
    return values


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file, on the CPU, and its metadata; InputError when it is none."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}; get an undamaged copy") from error
    return as_weights(tensors, path), metadata


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a file written by torch.save, read by `weights_only`: tensors and plain values, no code.

    InputError for files of old formats, for compressed or overlapping members, for pickles that want to run
    something or to reserve memory, and for anything damaged.
    """
    _refuse_bad_archive(path)
    try:
        with warnings.catch_warnings():  # about what is refused below anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged pickles raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} was not loaded ({reason}); only tensors and plain values are read, never code: save the state "
            "dictionary alone, best as .safetensors"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _refuse_bad_archive(path: Path) -> None:
    """Members must be stored as they are and lie side by side, so that nothing is larger than the file."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a zip archive"
        raise InputError(
            f"{path} cannot be read as a file of torch.save: {reason}; files from before torch 1.6 have to be saved "
            "again by a newer torch"
        ) from error
    compressed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise InputError(f"{path}: {compressed[0]!r} is compressed, which torch.save never does; it is not read")
    total = sum(member.file_size for member in members)
    if total > min(size, MOST_BYTES):
        raise InputError(
            f"{path}: its members claim {total:,} bytes, but the file has {size:,} and at most {MOST_BYTES:,} are read"
        )
    _refuse_reservations(path, [member for member in members if member.filename.lower().endswith(".pkl")])


def _refuse_reservations(path: Path, pickles: Sequence[zipfile.ZipInfo]) -> None:
    """No pickle may name bytearray: torch allows it, and bytearray(N) fills any memory out of one number."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for each in pickles:
            start = each.header_offset
            if content.find(b"bytearray\n", start, start + _MOST_HEADER_BYTES + each.file_size) >= 0:
                raise InputError(f"{path}: {each.filename!r} asks for a bytearray, as no weights do; it is not read")


def as_weights(tensors: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Copies in memory, which together are no larger than the file.

    InputError where one is not a plain, dense, real tensor of floating-point numbers, or where they share memory to an
    extent that their copies would outgrow the file.
    """
    bad = [repr(name) for name, tensor in tensors.items() if not isinstance(name, str) or not _is_plain(tensor)]
    if bad:
        shown = ", ".join(bad[:5]) + (" ..." if len(bad) > 5 else "")
        raise InputError(f"{path}: not a floating-point tensor with memory of its own: {shown}; it is not read")
    total, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if total > size:  # one tensor under many names makes any size out of one
        raise InputError(
            f"{path}: its tensors share memory; apart they are {total:,} bytes, but the file has {size:,}: save a copy "
            "of each (tensor.clone())"
        )
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _is_plain(tensor: object) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and tensor.is_contiguous()  # a stride of zero makes any size out of one number
    )
