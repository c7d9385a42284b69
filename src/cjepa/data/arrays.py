"""Images in memory."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image


class ArraySource:
    """Images in memory: uint8 [n, 3, H, W], with the labels and names they are given; see ImageSource."""

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        classes: tuple[str, ...],
        names: Sequence[str] | None = None,
    ) -> None:
        """names: CLASS/INDEX unless given."""
        self.images = images
        self.labels = labels
        self.classes = classes
        self.names = names or [f"{classes[label]}/{index:05d}" for index, label in enumerate(labels)]
        self.fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB."""
        return Image.fromarray(np.ascontiguousarray(self.images[index].transpose(1, 2, 0)))
