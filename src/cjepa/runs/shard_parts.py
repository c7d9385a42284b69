"""What is known of finished shards while others are still to be made or read, so that a restart repeats nothing."""

import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np

from cjepa.data.names import NameList
from cjepa.data.shard_contents import ShardContents
from cjepa.training.durable import replace

FOLDER = ".cjepa-parts"


class Parts:
    """One file for each shard that was read to its end, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def save(self, shard: Path, contents: ShardContents) -> None:
        """Keep what a shard holds."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text, ends = contents.names.columns()
        state = {
            "size": contents.size,
            "head": contents.head,
            "labels": contents.labels,
            "others": contents.others,
            "digest": contents.digest(),
            "changed": shard.stat().st_mtime_ns,
        }
        file = BytesIO()
        np.savez(
            file,
            offsets=contents.offsets,
            sizes=contents.sizes,
            checksums=contents.checksums,
            text=text,
            ends=ends,
            state=np.frombuffer(json.dumps(state).encode(), np.uint8),
        )
        replace(self._folder / f"{shard.name}.npz", file.getvalue())

    def load(self, shard: Path) -> ShardContents | None:
        """What was kept of a shard; None if nothing was, or if the shard or what was kept has changed since."""
        try:
            return self._load(shard)
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            return None

    def remove(self) -> None:
        """Forget all; the index holds it now."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _load(self, shard: Path) -> ShardContents | None:
        with np.load(self._folder / f"{shard.name}.npz", allow_pickle=False) as kept:
            state = json.loads(kept["state"].tobytes())
            names = NameList.of(kept["text"], kept["ends"])
            contents = ShardContents(
                state["size"],
                state["head"],
                kept["offsets"],
                kept["sizes"],
                kept["checksums"],
                names,
                state["labels"],
            )
        contents.others.update(state["others"])
        status = shard.stat()
        same = (status.st_size, status.st_mtime_ns) == (contents.size, state["changed"])
        return contents if same and contents.digest() == state["digest"] else None
