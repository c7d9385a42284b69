"""Videos with masks in the layout of DAVIS 2017."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cjepa.data import UnreadableImageError, decode
from cjepa.data.decoding import PILLOW_LIMIT
from cjepa.data.files import is_hidden
from cjepa.errors import InputError
from cjepa.evaluation.davis_scores import VOID
from cjepa.evaluation.segmentation_data import read_mask

FEWEST_FRAMES = 3
"""The first frame is given and the last one is not scored."""


@dataclass(frozen=True)
class Sequence:
    """The frames of a video and their annotations, in order."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]

    def frame(self, index: int) -> Image.Image:
        """A frame in mode RGB."""
        try:
            return decode(self.frames[index], PILLOW_LIMIT)
        except UnreadableImageError as error:
            raise InputError(f"{self.frames[index]} cannot be read: {error}; unpack the sequence again") from error

    def annotations(self) -> UInt8[np.ndarray, "T H W"]:
        """Numbers of objects, of all frames; InputError where sizes or numbers cannot be."""
        masks = [read_mask(path) for path in self.masks]
        frames = [self.frame(index) for index in range(len(self.frames))]
        sizes = {mask.shape for mask in masks} | {(frame.height, frame.width) for frame in frames}
        if len(sizes) > 1:
            raise InputError(
                f"sequence {self.name}: its masks and frames differ in size; all must have the size of the first frame "
                "(DAVIS: the folder 480p of both)"
            )
        stacked = np.stack(masks)
        objects = int(masks[0][masks[0] != VOID].max(initial=0))
        if objects == 0:
            raise InputError(f"{self.masks[0]} holds no object; the first mask says what is followed")
        later = stacked[stacked != VOID]
        if later.min() < 0 or later.max() > objects:
            raise InputError(
                f"sequence {self.name}: a later mask has object {int(later.max())}, but the first one only {objects}; "
                "objects must be marked in the first frame"
            )
        return stacked.astype(np.uint8)


def open_davis(root: Path, split: str, resolution: str) -> tuple[Sequence, ...]:
    """The sequences that ImageSets/2017/SPLIT.txt names; InputError where frames or masks are missing."""
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listing.is_file():
        raise InputError(
            f"{listing} does not exist; unpack DAVIS-2017-trainval and name its folder, which holds ImageSets, "
            "JPEGImages and Annotations"
        )
    names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise InputError(f"{listing} names no sequence; write one name a line")
    return tuple(_sequence(root, name, resolution) for name in names)


def _sequence(root: Path, name: str, resolution: str) -> Sequence:
    found = (root / "JPEGImages" / resolution / name).glob("*.jpg")
    frames = sorted((path for path in found if not is_hidden(path.name)), key=_in_time)
    annotations = root / "Annotations" / resolution / name
    if len(frames) < FEWEST_FRAMES:
        raise InputError(
            f"sequence {name} has {len(frames)} frames in JPEGImages/{resolution}/{name}; it needs at least "
            f"{FEWEST_FRAMES}"
        )
    masks = [annotations / f"{frame.stem}.png" for frame in frames]
    missing = [mask for mask in masks if not mask.is_file()]
    if missing:
        raise InputError(
            f"sequence {name}: {len(missing)} of {len(masks)} frames have no mask, the first is {missing[0]}; every "
            "frame is scored, so take a split with public annotations (val)"
        )
    return Sequence(name, tuple(frames), tuple(masks))


def _in_time(frame: Path) -> list[str | int]:
    """Numbers in a name count as numbers, 2 before 10; DAVIS's have equally many digits, so its order is the same."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", frame.stem)]
