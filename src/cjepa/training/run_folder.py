"""The folder of a run: known to be writable before any work starts, and held by one process at a time."""

import json
import os
import platform
import secrets
from pathlib import Path

from filelock import FileLock, Timeout

from cjepa.errors import InputError, StorageError
from cjepa.training.durable import replace, require_locks, sync_folder, write_new

_LOCK = ".lock"
_OWNER = ".owner.json"
_CONFIG = "config.yaml"


class RunFolder:
    """Creates `path`, tries a write, and holds its lock while open.

    InputError when it cannot be written, holds something other than a run, or is in use by another process (named).
    The lock is the operating system's: it is free again when its holder dies, however it dies.
    """

    def __init__(self, path: Path, patience: float = 6.0) -> None:
        """patience: seconds to wait for the lock; loader workers of a killed run outlive it by up to five."""
        self.path = path
        self._patience = patience
        self._lock = FileLock(path / _LOCK)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    def write(self, name: str, text: str) -> None:
        """Write a small text file, such as config.yaml, at once: never half of it, also in a power cut.

        StorageError when it cannot be written; what was there before is still there.
        """
        try:
            replace(self.path / name, text.encode())
        except OSError as error:
            raise StorageError(
                f"{self.path / name} cannot be written: {error.strerror or error}; make room or repair the folder, "
                "then run the same command again"
            ) from error

    def __enter__(self) -> "RunFolder":
        self._create()
        try:
            self._refuse_foreign()
            self._probe()
            self._lock.acquire(timeout=self._patience)
            self.write(_OWNER, json.dumps({"pid": os.getpid(), "host": platform.node()}))
        except Timeout as error:
            raise InputError(
                f"the run folder {self.path} is in use by {self._owner()}; stop that, or choose another folder"
            ) from error
        except NotImplementedError as error:
            raise InputError(
                f"the file system of {self.path} has no locks, so two runs could write into one folder; choose another"
            ) from error
        except (OSError, StorageError) as error:
            self._lock.release()
            raise self._unwritable(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise InputError(f"the run folder {self.path} is a file; choose another path") from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _refuse_foreign(self) -> None:
        """A run has its config, and one that ended before writing it has its owner."""
        names = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if names and _CONFIG not in names and not (self.path / _OWNER).exists():
            raise InputError(
                f"{self.path} is not empty and not a run folder (it has {names[0]!r} but no {_CONFIG}); "
                "choose a new or empty folder"
            )

    def _probe(self) -> None:
        """Do once what every save will do."""
        first = self.path / f".tmp-probe-{secrets.token_hex(4)}"
        second = first.with_name(f"{first.name}-renamed")
        try:
            write_new(first, b"probe")
            require_locks(self.path)
            first.rename(second)
            sync_folder(self.path)
        finally:
            first.unlink(missing_ok=True)
            second.unlink(missing_ok=True)

    def _owner(self) -> str:
        try:
            owner = json.loads((self.path / _OWNER).read_text())
            return f"process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _unwritable(self, error: OSError | StorageError) -> InputError:
        return InputError(
            f"the run folder {self.path} cannot be written: {error}; choose a folder that you may write to"
        )
