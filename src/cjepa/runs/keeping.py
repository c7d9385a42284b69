"""Where an interrupted evaluation keeps its work: checkpoints in the run folder, gone once the result is known."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cjepa.errors import InputError, NoValidCheckpointError
from cjepa.evaluation.work import Kept
from cjepa.training.checkpoint import CheckpointSaveError, CheckpointStore

_log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"


class RunKeeper:
    """Checkpoints of one evaluation of one encoder, found again by everything that decides its values.

    A folder that cannot be written, such as one of weights that belong to others, costs the checkpoints and a warning,
    never the values.
    """

    def __init__(self, run: Path, subject: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(dict(subject), sort_keys=True).encode()).hexdigest()
        self.folder = run / UNFINISHED / key[:16]
        self._store = CheckpointStore(self.folder)
        self._warned = False

    def newest(self, groups: tuple[str, ...]) -> Kept | None:
        """The last intact save; where none is intact the evaluation starts again, since it can."""
        try:
            found = self._store.newest()
        except (NoValidCheckpointError, InputError):
            return None
        if found is None:
            return None
        return Kept(found.step, {group: found.tensors(group) for group in groups}, found.state)

    def save(self, kept: Kept) -> None:
        """Keep this; the first time that it cannot be written, a warning says so."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store.save(kept.step, kept.tensors, kept.state)
        except (OSError, CheckpointSaveError) as error:
            if not self._warned:
                _log.warning("what is done so far cannot be kept (%s): interrupted, it would start again", error)
            self._warned = True

    def remove(self) -> None:
        """The result is known."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # it is not there, or holds others
            self.folder.parent.rmdir()
