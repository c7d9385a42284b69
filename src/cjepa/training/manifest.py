"""The manifest of a checkpoint: what a folder must hold, to the bit, to be used.

No tensor format notices a flipped bit, so the manifest states size and sha256 of every file. It is accepted only
in the exact bytes that this module writes: with its files it then leaves no byte of a checkpoint unchecked.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"

# What a stranger's checkpoint can make us read into memory before anything is verified.
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_STATE_BYTES = 64 << 20

FileName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,99}\.(safetensors|json)$")]
"""Plain names only: no folder, no drive, no leading dot."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Strict):
    """Size in bytes and sha256 of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def of(cls, content: bytes) -> "FileEntry":
        """The entry of a file with this content."""
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())


class Manifest(_Strict):
    """The step of a checkpoint and its files."""

    format_version: int
    step: int = Field(ge=0)
    files: dict[FileName, FileEntry]

    def encode(self) -> bytes:
        """The one spelling of this manifest."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


class _Version(BaseModel):
    model_config = ConfigDict(strict=True)

    format_version: int


class DamagedError(Exception):
    """A checkpoint cannot be used; `problems` says why, one file each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


def read_verified_state(folder: Path, step: int) -> dict[str, Any]:
    """The content of state.json once every file in `folder` is verified; DamagedError when one is not as written."""
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedError("it is missing or not a folder")
    try:
        manifest = _read_manifest(folder)
        problems = [] if manifest.step == step else [f"{MANIFEST_NAME}: step is {manifest.step}, not {step}"]
        problems += _compare_names(folder, manifest)
        for name, entry in manifest.files.items():
            problems += _compare_file(folder / name, entry)
        if problems:
            raise DamagedError(*problems)
        return _read_state(folder)
    except OSError as error:
        raise DamagedError(f"it cannot be read: {error}") from error


def _read_state(folder: Path) -> dict[str, Any]:
    raw = _read_bounded(folder / STATE_NAME, _MAX_STATE_BYTES)
    try:
        state = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{STATE_NAME} is not valid JSON: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{STATE_NAME} does not hold an object")
    return state


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _read_manifest(folder: Path) -> Manifest:
    raw = _read_bounded(folder / MANIFEST_NAME, _MAX_MANIFEST_BYTES)
    try:
        version = _Version.model_validate_json(raw).format_version
        if version != FORMAT_VERSION:
            raise DamagedError(
                f"{MANIFEST_NAME}: format_version {version} is unknown to this version of cjepa, "
                f"which reads {FORMAT_VERSION}; use the version that wrote the checkpoint"
            )
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "content"
        raise DamagedError(f"{MANIFEST_NAME}: {place}: {first['msg']}") from error
    if manifest.encode() != raw:
        raise DamagedError(f"{MANIFEST_NAME} was changed since it was written")
    return manifest


def _read_bounded(path: Path, limit: int) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DamagedError(f"{path.name} is larger than {limit:,} bytes")
    return content


def _compare_names(folder: Path, manifest: Manifest) -> list[str]:
    # Names with a leading dot are those that systems leave behind (.DS_Store, .nfs0001): never ours, never read.
    present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    expected = {MANIFEST_NAME, *manifest.files}
    problems = [f"{name} is not in the manifest" for name in sorted(present - expected)]
    if STATE_NAME not in manifest.files or MANIFEST_NAME in manifest.files:
        problems.append(f"{MANIFEST_NAME} must list {STATE_NAME} and not itself")
    return problems


def _compare_file(path: Path, entry: FileEntry) -> list[str]:
    if path.is_symlink() or not path.is_file():
        return [f"{path.name} is missing"]
    with path.open("rb") as file:
        size = path.stat().st_size
        if size != entry.size:
            return [f"{path.name} has {size:,} bytes instead of {entry.size:,}"]
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            return [f"{path.name} is damaged: its sha256 is not the one in the manifest"]
    return []
