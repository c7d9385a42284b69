"""Checkpoints that a kill never leaves half written and that are used only when every byte is as it was written.

A save writes into a temporary folder beside the others, syncs each file and the folder, renames it to
step-XXXXXXXX, syncs the parent, verifies what is on the disk and only then deletes older ones.
"""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from cjepa.errors import InputError, NoValidCheckpointError, StorageError
from cjepa.training.durable import sync_folder, write_new
from cjepa.training.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    STATE_NAME,
    DamagedError,
    FileEntry,
    Manifest,
    read_verified_state,
)

_log = logging.getLogger(__name__)

_STEP_FOLDER = re.compile(r"step-([0-9]{8,18})")
_TEMPORARY = ".tmp-"
_SET_ASIDE = ".old-"
UNFINISHED = (_TEMPORARY, _SET_ASIDE)
"""How the names begin of what a killed save leaves behind."""
_SPACE_MARGIN = 1 << 20  # names, headers, manifest and block rounding


class CheckpointSaveError(StorageError):
    """A checkpoint could not be saved; the earlier ones are untouched and the run can be continued from them."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `step` steps were taken when it was written."""

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The names under which it holds tensors."""
        return sorted(file.stem for file in self.path.glob("*.safetensors"))

    def tensors(self, name: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors saved under `name`, on the CPU.

        like: what they must be, compared by name and shape before anything is read, so that the checkpoint of
        another model, or of a stranger, takes no more memory than the model. InputError names the first difference.
        """
        path = self.path / f"{name}.safetensors"
        if name not in self.names:
            raise InputError(f"{self.path} holds no tensors named {name!r}; it holds {', '.join(self.names)}")
        try:
            if like is not None:
                _refuse_other_shapes(path, like)
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read: {error}; use another checkpoint") from error


class CheckpointStore:
    """The checkpoints of one run: the newest `keep` valid ones stay.

    Reading is safe while another process saves. Only one process may save; the run folder's lock sees to that.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 2:
            raise InputError(f"{keep} checkpoints to keep is too few: keep at least 2, one may be damaged")
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, valid or not, oldest first. By name: clocks and mtimes may lie."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.folder} cannot be listed: {error}; check the path") from error
        matches = [match for name in names if (match := _STEP_FOLDER.fullmatch(name))]
        return sorted(step for match in matches if _folder_name(step := int(match[1])) == match[0])

    def verify(self, step: int) -> list[str]:
        """What is wrong with the checkpoint of `step`; empty when it is valid. Reads and hashes every file."""
        try:
            self._read(step)
        except DamagedError as error:
            return error.problems
        return []

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`; NoValidCheckpointError when it is missing or damaged."""
        try:
            return self._read(step)
        except DamagedError as error:
            raise NoValidCheckpointError(
                f"checkpoint {_folder_name(step)} in {self.folder} cannot be used: {error}"
            ) from error

    def newest(self) -> Checkpoint | None:
        """The valid checkpoint of the highest step; None when there is none at all.

        Every damaged one on the way is logged as a warning. NoValidCheckpointError when all are damaged: starting
        over without a word would hide the loss.
        """
        skipped = []
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step)
            except DamagedError as error:
                skipped.append(f"{_folder_name(step)}: {error}")
                _log.warning("checkpoint skipped, it cannot be used: %s", skipped[-1])
        if self.steps() != steps:  # another process saved and deleted meanwhile
            return self.newest()
        if skipped:
            raise NoValidCheckpointError(
                f"none of the {len(skipped)} checkpoints in {self.folder} is valid ({' | '.join(skipped)}); "
                "put back a copy of one, or start a new run in another folder"
            )
        return None

    def remove_leftovers(self) -> None:
        """Clear what a killed save left behind; call it at the start of a run, before `newest`.

        CheckpointSaveError when the folder cannot be changed.
        """
        try:
            self._clear()
        except OSError as error:
            raise CheckpointSaveError(
                f"what a killed save left in {self.folder} cannot be removed: {error}; repair the folder, then run the "
                "same command again"
            ) from error

    def _clear(self) -> None:
        if not self.folder.exists():
            return
        for entry in sorted(self.folder.iterdir()):
            if entry.name.startswith(_SET_ASIDE):
                self._settle(entry)
        for entry in sorted(self.folder.iterdir()):
            if entry.name.startswith(_TEMPORARY):
                _remove(entry)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        protect: Collection[int] = (),
    ) -> Checkpoint:
        """Save NAME.safetensors for each entry of `tensors` and `state` as state.json, then delete old ones.

        Steps in `protect` are never deleted. A checkpoint of the same step is replaced. Needs host memory for a
        copy of the largest entry. CheckpointSaveError names the path, the bytes needed and the bytes free.
        """
        assert step >= 0, step
        encoded = json.dumps(dict(state), allow_nan=False, sort_keys=True).encode()
        need = sum(tensor.nbytes for entry in tensors.values() for tensor in entry.values())
        need += len(encoded) + _SPACE_MARGIN
        temporary = self.folder / f"{_TEMPORARY}{_folder_name(step)}-{secrets.token_hex(4)}"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir()  # no parents: a run folder that vanished must not come back empty
                sync_folder(self.folder.parent)
            self._clear()
            if shutil.disk_usage(self.folder).free < need:
                raise self._failure(step, "not enough space", need)
            temporary.mkdir()
            _write(temporary, step, tensors, encoded)
            checkpoint = self._commit(temporary, step)
        except (OSError, SafetensorError, DamagedError) as error:
            raise self._failure(step, str(error), need) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._delete_old(step, protect)
        return checkpoint

    def amend(self, checkpoint: Checkpoint, state: Mapping[str, Any], protect: Collection[int] = ()) -> Checkpoint:
        """Save a checkpoint again with the same tensors and another state."""
        tensors = {name: checkpoint.tensors(name) for name in checkpoint.names}
        return self.save(checkpoint.step, tensors, state, protect)

    def _read(self, step: int) -> Checkpoint:
        path = self.folder / _folder_name(step)
        return Checkpoint(path, step, read_verified_state(path, step))

    def _commit(self, temporary: Path, step: int) -> Checkpoint:
        final = self.folder / _folder_name(step)
        aside = self.folder / f"{_SET_ASIDE}{final.name}"
        replaces = _exists(final)
        if replaces:
            final.rename(aside)
        temporary.rename(final)
        sync_folder(self.folder)
        checkpoint = self._read(step)
        if replaces:
            self._settle(aside)
        return checkpoint

    def _settle(self, aside: Path) -> None:
        """End a replacement: the new checkpoint stays if it is valid, else the old one comes back."""
        final = self.folder / aside.name.removeprefix(_SET_ASIDE)
        match = _STEP_FOLDER.fullmatch(final.name)
        if match and self.verify(int(match[1])):
            self._discard(final)
            aside.rename(final)
            sync_folder(self.folder)
        else:
            self._discard(aside)

    def _delete_old(self, saved: int, protect: Collection[int]) -> None:
        """Delete what is older than the newest `keep` valid ones, which are verified again before anything goes."""
        valid = 0
        for step in reversed(self.steps()):
            if valid < self.keep:
                valid += step == saved or not self.verify(step)
            elif step != saved and step not in protect:
                try:
                    self._discard(self.folder / _folder_name(step))
                except OSError as error:
                    _log.warning("old checkpoint of step %d could not be deleted: %s", step, error)

    def _discard(self, path: Path) -> None:
        """Delete a folder in one move: a kill halfway leaves a temporary folder, not a damaged checkpoint."""
        if not _exists(path):
            return
        temporary = self.folder / f"{_TEMPORARY}{path.name}-{secrets.token_hex(4)}"
        path.rename(temporary)
        _remove(temporary)

    def _failure(self, step: int, reason: str, need: int) -> CheckpointSaveError:
        return CheckpointSaveError(
            f"the checkpoint of step {step} could not be saved in {self.folder}: {reason} "
            f"({need:,} bytes needed, {_free(self.folder)} free); earlier checkpoints are untouched: make room or "
            "repair the folder, then run the same command again"
        )


def _refuse_other_shapes(path: Path, like: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a mapping
    wanted = {name: list(tensor.shape) for name, tensor in like.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{path}: {name} has shape {found.get(name, '(not there)')} instead of "
                f"{wanted.get(name, '(not there)')}: the checkpoint is of another model or version of cjepa; use the "
                "configuration and version that wrote it"
            )


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: bytes) -> None:
    files = {STATE_NAME: FileEntry.of(state)}
    write_new(folder / STATE_NAME, state)
    for name, entry in tensors.items():
        content = to_safetensors(_packed(entry))
        files[f"{name}.safetensors"] = FileEntry.of(content)
        write_new(folder / f"{name}.safetensors", content)
    manifest = Manifest(format_version=FORMAT_VERSION, step=step, files=files)
    write_new(folder / MANIFEST_NAME, manifest.encode())
    sync_folder(folder)


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors contiguous, on the CPU, and none sharing memory with another, which safetensors refuses."""
    packed: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in storages:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        packed[name] = copy
    return packed


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    """Delete a folder, or whatever lies in its place; a link is deleted, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "unknown"
