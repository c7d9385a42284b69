"""Writes that survive a kill and a power cut: content is synced before it is given its name."""

import os
import secrets
from pathlib import Path


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet and sync it to the disk; OSError when it cannot."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder, so that a new or renamed entry survives a power cut."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Give `path` new content at once: a reader, or a restart, sees the old or the new one, never a part."""
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        write_new(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def require_locks(folder: Path) -> None:
    """NotImplementedError where the file system of a folder has no locks; OSError where it cannot be written.

    filelock 4 would make do with a file that names its holder, which one that was killed on another machine leaves for
    ever.
    """
    if os.name == "nt":  # which has locks of its own
        return
    import fcntl

    path = folder / f".tmp-lock-{secrets.token_hex(4)}"
    try:
        with path.open("xb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise NotImplementedError(f"its file system has no locks ({error})") from error
    finally:
        path.unlink(missing_ok=True)
