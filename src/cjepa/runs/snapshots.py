"""The fixed images of a run and what its encoders made of them, kept in RUN/report as safetensors."""

import json
import logging
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cjepa.training.durable import replace
from cjepa.visualization.report.material import Pairs, Samples, Snapshot

_log = logging.getLogger(__name__)

MOST = 12
"""Snapshots that are kept of a run."""
_SUFFIX = ".safetensors"
_HALF = ("patches", "embeddings", "attention_target", "attention_context")


class SnapshotStore:
    """RUN/report/snapshots/step-XXXXXXXX.safetensors, at most MOST of them, and RUN/report/images.safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "snapshots"
        self.images = folder / f"images{_SUFFIX}"

    def steps(self) -> list[int]:
        """Steps that have a snapshot, ascending."""
        names = [path.name.removesuffix(_SUFFIX).removeprefix("step-") for path in self.folder.glob(f"step-*{_SUFFIX}")]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot and remove the one that leaves the smallest gap where there are too many."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in vars(snapshot).items() if isinstance(value, Tensor)}
        tensors = {name: value.half() if name in _HALF else value for name, value in tensors.items()}
        tensors |= {"pair_similarity": snapshot.pairs.similarity, "pair_images": snapshot.pairs.images}
        _write(self._path(snapshot.step), tensors, {"names": snapshot.pairs.names, "among": snapshot.pairs.among})
        kept = thinned(self.steps(), MOST)
        for step in set(self.steps()) - set(kept):
            self._path(step).unlink(missing_ok=True)

    def load(self, step: int) -> Snapshot | None:
        """A snapshot; None, and a warning, where its file is damaged."""
        found = _read(self._path(step))
        if found is None:
            return None
        tensors, texts = found
        similarity, images = tensors.pop("pair_similarity"), tensors.pop("pair_images")
        pairs = Pairs(similarity, images, tuple((first, second) for first, second in texts["names"]), texts["among"])
        tensors = {name: value.float() if name in _HALF else value for name, value in tensors.items()}
        return Snapshot(step=step, pairs=pairs, **tensors)

    def load_all(self) -> list[Snapshot]:
        """Every snapshot that can be read, the earliest first."""
        loaded = [self.load(step) for step in self.steps()]
        return [snapshot for snapshot in loaded if snapshot is not None]

    def remove_after(self, step: int) -> None:
        """Forget snapshots of steps that are about to be taken again."""
        for later in [each for each in self.steps() if each > step]:
            self._path(later).unlink(missing_ok=True)

    def save_samples(self, samples: Samples) -> None:
        """Write the fixed images."""
        self.images.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in vars(samples).items() if isinstance(value, Tensor)}
        _write(self.images, tensors, {"example_names": samples.example_names})

    def load_samples(self) -> Samples | None:
        """The fixed images; None where there are none or their file is damaged."""
        found = _read(self.images) if self.images.exists() else None
        if found is None:
            return None
        tensors, texts = found
        return Samples(example_names=tuple(texts["example_names"]), **tensors)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}{_SUFFIX}"


def thinned(steps: list[int], most: int) -> list[int]:
    """At most so many of ascending steps, as even as can be; the first and the last stay."""
    kept = list(steps)
    while len(kept) > most:
        widths = [after - before for before, after in zip(kept, kept[2:], strict=False)]
        del kept[1 + widths.index(min(widths))]
    return kept


def _write(path: Path, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace(path, safetensors.torch.save(whole, {"texts": json.dumps(texts)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        texts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["texts"])
        return safetensors.torch.load(content), texts
    except (OSError, SafetensorError, ValueError, KeyError, struct.error) as error:
        _log.warning("%s cannot be read (%s): the report goes without it", path, error)
        return None


def most_similar(embeddings: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The most similar pairs of images: cosine of centred embeddings [p], and the indices of both [p, 2].

    Each image is compared with every other, 2^24 similarities at a time.
    """
    centred = torch.nn.functional.normalize(embeddings.float() - embeddings.float().mean(0), dim=1)
    count = len(centred)
    best, where = torch.empty(0), torch.empty(0, 2, dtype=torch.int64)
    rows = max(2**24 // max(count, 1), 1)
    for start in range(0, count, rows):
        similarity = centred[start : start + rows] @ centred.T
        later = torch.arange(count)[None, :] > torch.arange(start, start + len(similarity))[:, None]
        values, flat = similarity.masked_fill(~later, -2.0).flatten().topk(min(most, similarity.numel()))
        pairs = torch.stack([flat // count + start, flat % count], dim=1)[values > -2.0]
        best, where = torch.cat([best, values[values > -2.0]]), torch.cat([where, pairs])
        order = best.argsort(descending=True, stable=True)[:most]
        best, where = best[order], where[order]
    return best, where
