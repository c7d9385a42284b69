"""What every source of images offers, and how a source is split for evaluation."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from cjepa.data.names import Chosen

NO_LABEL = -1


@runtime_checkable
class ImageSource(Protocol):
    """A fixed list of images that can be read in any order, from any process."""

    @property
    def names(self) -> Sequence[str]:
        """A stable, printable name of each image, relative to the source."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each image, an index into `classes`, NO_LABEL where there is none."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, empty when the images have no labels."""
        ...

    @property
    def fingerprint(self) -> str:
        """A sha256 that changes when the images do."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError."""
        ...


@dataclass(frozen=True)
class Splits:
    """What to train on and, where the source provides it, what to test on. `notes` are worth telling the user."""

    train: ImageSource
    test: ImageSource | None
    notes: tuple[str, ...] = ()


class Subset:
    """Some images of a source, in the given order."""

    def __init__(self, source: ImageSource, indices: npt.NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices
        self.names: Sequence[str] = Chosen(source.names, indices)
        self.labels = source.labels[indices]
        self.classes = source.classes
        chosen = hashlib.sha256(source.fingerprint.encode() + indices.astype("<i8").tobytes())
        self.fingerprint = chosen.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError."""
        return self.source.load(int(self.indices[index]))


class Joined:
    """Several sources one after the other, the names of each below its own; without labels."""

    def __init__(self, sources: Mapping[str, ImageSource]) -> None:
        self.sources = tuple(sources.values())
        self.names = [f"{part}/{name}" for part, source in sources.items() for name in source.names]
        self.labels = np.full(len(self.names), NO_LABEL, dtype=np.int64)
        self.classes: tuple[str, ...] = ()
        joined = "".join(f"{part} {source.fingerprint}\n" for part, source in sources.items())
        self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError."""
        for source in self.sources:
            if index < len(source):
                return source.load(index)
            index -= len(source)
        raise IndexError(index)


def labelled_only(source: ImageSource) -> ImageSource:
    """The images that have a label; the source itself when all have."""
    indices = np.flatnonzero(source.labels != NO_LABEL)
    return source if len(indices) == len(source) else Subset(source, indices)


def holdout(source: ImageSource, share: float = 0.2) -> Splits | None:
    """Labelled images split by a hash of their names, about `share` of them to test; None if that cannot be done.

    For evaluating the frozen encoder where a source has no test split: pre-training, which sees no labels, still
    uses all images. An image stays on its side when others are added or removed.
    """
    labelled = np.flatnonzero(source.labels != NO_LABEL)
    shares = (_name_share(source.names[int(index)]) < share for index in labelled)
    to_test = np.fromiter(shares, dtype=np.bool_, count=len(labelled))
    if to_test.all() or not to_test.any():
        return None
    return Splits(Subset(source, labelled[~to_test]), Subset(source, labelled[to_test]))


def _name_share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2.0**64
