"""Where an interrupted evaluation keeps its work: checkpoints in the run folder, gone once the result is known."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cjepa.errors import NoValidCheckpointError
from cjepa.evaluation.work import Kept
from cjepa.training.checkpoint import CheckpointStore

UNFINISHED = ".unfinished"


class RunKeeper:
    """Checkpoints of one evaluation of one encoder, found again by everything that decides its values."""

    def __init__(self, run: Path, subject: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(dict(subject), sort_keys=True).encode()).hexdigest()
        self.folder = run / UNFINISHED / key[:16]
        self._store = CheckpointStore(self.folder)

    def newest(self, groups: tuple[str, ...]) -> Kept | None:
        """The last intact save; where none is intact the evaluation starts again, since it can."""
        try:
            found = self._store.newest()
        except NoValidCheckpointError:
            return None
        if found is None:
            return None
        return Kept(found.step, {group: found.tensors(group) for group in groups}, found.state)

    def save(self, kept: Kept) -> None:
        """Keep this; CheckpointSaveError, whose exit code says resumable, when it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._store.save(kept.step, kept.tensors, kept.state)

    def remove(self) -> None:
        """The result is known."""
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
