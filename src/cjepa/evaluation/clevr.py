"""Counting objects and judging the distance of the nearest: CLEVR scenes, labelled as in VTAB."""

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from cjepa.data import DataConfig, decode
from cjepa.data.decoding import PILLOW_LIMIT
from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.fingerprint import fingerprint_of
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.linear import LinearConfig, linear_accuracy
from cjepa.evaluation.task import FeatureTask
from cjepa.types import Part

FEWEST, MOST = 3, 10
"""Objects of a CLEVR scene."""
DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
"""Bounds of VTAB's six classes of distance, in CLEVR's units of depth."""
SPLITS = ("train", "val")
"""CLEVR publishes no scenes of its test images, so VTAB tests on the validation images."""

Scene = Mapping[str, Any]


class CountingConfig(Part):
    """How many objects a CLEVR scene holds (Clevr/Count): a linear probe of frozen features."""

    name: Literal["counting"] = "counting"
    """Number of objects."""
    data: Path
    """CLEVR's folder: images/{train,val}/*.png and scenes/CLEVR_{train,val}_scenes.json."""
    probe: LinearConfig = Field(default_factory=lambda: LinearConfig())
    """The linear classifier and the pooling of its features."""


class DistanceConfig(Part):
    """How far the nearest object of a CLEVR scene is, in six classes (Clevr/Dist): a linear probe."""

    name: Literal["distance"] = "distance"
    """Distance of the nearest object."""
    data: Path
    """CLEVR's folder: images/{train,val}/*.png and scenes/CLEVR_{train,val}_scenes.json."""
    probe: LinearConfig = Field(default_factory=lambda: LinearConfig())
    """The linear classifier and the pooling of its features."""


class ClevrSource:
    """The images of one split, in the order of their scenes; whole, so that no object is cut off."""

    def __init__(
        self,
        images: Path,
        scenes: list[Scene],
        labels: npt.NDArray[np.int64],
        classes: tuple[str, ...],
        data: DataConfig,
    ) -> None:
        self.names = [str(scene["image_filename"]) for scene in scenes]
        self.labels = labels
        self.classes = classes
        self._images = images
        self._size = data.size
        self._max_pixels = min(data.max_pixels, PILLOW_LIMIT)
        digest = hashlib.sha256(labels.astype("<i8").tobytes())
        digest.update(fingerprint_of(images / name for name in self.names).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """The image squeezed to the encoder's size, as VTAB does; raises UnreadableImageError."""
        image = decode(self._images / self.names[index], self._max_pixels)
        return image.resize((self._size[1], self._size[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)


def open_counting(config: CountingConfig, data: DataConfig) -> FeatureTask:
    """The scenes with their number of objects."""
    classes = tuple(str(count) for count in range(FEWEST, MOST + 1))
    images = _open(config.data.expanduser(), data, count_class, classes)
    return FeatureTask(images, config.probe.pooling, lambda features: _accuracy("counting", config.probe, features))


def open_distance(config: DistanceConfig, data: DataConfig) -> FeatureTask:
    """The scenes with the class of their nearest object's distance."""
    classes = tuple(f"{low:g} to {high:g}" for low, high in pairwise(DISTANCES))
    images = _open(config.data.expanduser(), data, distance_class, classes)
    return FeatureTask(images, config.probe.pooling, lambda features: _accuracy("distance", config.probe, features))


def _accuracy(name: str, probe: LinearConfig, features: LabelledFeatures) -> dict[str, float]:
    return {name: linear_accuracy(probe, features)["linear"]}


def count_class(scene: Scene) -> int:
    """Number of objects less the fewest; ValueError outside of CLEVR's range."""
    count = len(scene["objects"])
    if not FEWEST <= count <= MOST:
        raise ValueError(f"{count} objects, and CLEVR's scenes hold {FEWEST} to {MOST}")
    return count - FEWEST


def distance_class(scene: Scene) -> int:
    """Which of VTAB's classes the least depth falls into; a bound belongs to the class below it."""
    depth = min(float(thing["pixel_coords"][2]) for thing in scene["objects"])
    if not DISTANCES[0] < depth <= DISTANCES[-1]:
        raise ValueError(f"a depth of {depth:g}, which is not between {DISTANCES[0]:g} and {DISTANCES[-1]:g}")
    return max(number for number, bound in enumerate(DISTANCES) if bound < depth)


def _open(root: Path, data: DataConfig, label: Callable[[Scene], int], classes: tuple[str, ...]) -> LabelledImages:
    whole = data.model_copy(update={"evaluation_crop": 1.0})
    train, test = (_source(root, split, whole, label, classes) for split in SPLITS)
    return LabelledImages(whole, train, test)


def _source(
    root: Path, split: str, data: DataConfig, label: Callable[[Scene], int], classes: tuple[str, ...]
) -> ClevrSource:
    path = root / "scenes" / f"CLEVR_{split}_scenes.json"
    scenes = _scenes(path)
    images = root / "images" / split
    labels = []
    for scene in scenes:
        try:
            labels.append(label(scene))
            name = str(scene["image_filename"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: scene {len(labels)} cannot be used: {error}; it needs image_filename and objects with "
                "pixel_coords as CLEVR's scenes have"
            ) from error
        if Path(name).name != name or not (images / name).is_file():
            raise InputError(f"{images / name}, named in {path}, does not exist; put the images of {split} there")
    return ClevrSource(images, scenes, np.array(labels, dtype=np.int64), classes, data)


def _scenes(path: Path) -> list[Scene]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; unpack CLEVR_v1.0 and name its folder (data=.../CLEVR_v1.0)"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; unpack it again") from error
    scenes = content.get("scenes") if isinstance(content, dict) else None
    if not isinstance(scenes, list) or not scenes or not all(isinstance(scene, dict) for scene in scenes):
        raise InputError(f"{path} holds no scenes; it should be an object with a list `scenes`")
    return scenes
