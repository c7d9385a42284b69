"""Images with a class for every pixel: plain folders and ADE20K's layout, checked before anything is trained."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from cjepa.data import UnreadableImageError, decode
from cjepa.data.decoding import PILLOW_LIMIT, stored_size
from cjepa.data.files import EXTENSIONS, is_hidden
from cjepa.errors import InputError
from cjepa.evaluation.fingerprint import fingerprint_of

UNSCORED = 255
"""Label of pixels that are neither trained on nor scored, in the masks that are handed on."""
LAYOUTS = (("images", "masks", ("train",), ("test", "val")), ("images", "annotations", ("training",), ("validation",)))
"""Folders of images and masks, and the names of their training and test splits: plain folders, and ADE20K."""

Size = tuple[int, int]


class Pair(NamedTuple):
    """An image and its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class SegmentationData:
    """Training and test images with masks; `classes` numbered from 0 after `shift` was subtracted.

    train_sizes, test_sizes: widths and heights of the masks, which are those of the images.
    """

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    classes: int
    unlabelled: int
    shift: int
    train_sizes: frozenset[Size]
    test_sizes: frozenset[Size]
    fingerprint: str

    def protocol(self) -> dict[str, int | str]:
        """What results depend on."""
        return {
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": self.classes,
            "images": self.fingerprint,
        }

    def load(self, pair: Pair) -> tuple[Image.Image, UInt8[np.ndarray, "H W"]]:
        """The image in mode RGB and its mask, UNSCORED where it has no label; InputError where they do not fit."""
        try:
            image = decode(pair.image, PILLOW_LIMIT)
        except UnreadableImageError as error:
            raise InputError(f"{pair.image} cannot be read: {error}; replace or remove it and its mask") from error
        mask = self.labels(pair.mask)
        if mask.shape != (image.height, image.width):
            raise InputError(
                f"{pair.mask} has {mask.shape[1]} x {mask.shape[0]} pixels, its image {image.width} x {image.height}; "
                "masks must have the size of their image (resize them to the nearest pixel, without smoothing)"
            )
        return image, mask

    def labels(self, path: Path) -> UInt8[np.ndarray, "H W"]:
        """A mask's classes; InputError for labels out of range."""
        raw = read_mask(path)
        labels = raw - self.shift
        scored = raw != self.unlabelled
        if self.shift:
            scored &= raw != 0
        wrong = scored & ((labels < 0) | (labels >= self.classes))
        if wrong.any():
            raise InputError(
                f"{path} has the label {int(raw[wrong].flat[0])}, but there are {self.classes} classes, from "
                f"{self.shift} to {self.classes + self.shift - 1}; set classes, or unlabelled for pixels without class"
            )
        return np.where(scored, labels, UNSCORED).astype(np.uint8)


def read_mask(path: Path) -> Int[np.ndarray, "H W"]:
    """The numbers of a mask: grey or palette images of 8 bits, or 16."""
    try:
        with Image.open(path) as mask:
            if mask.mode not in ("L", "P", "I;16", "I"):
                raise InputError(
                    f"{path} is a {mask.mode} image; masks hold one number a pixel (PNG, grey or palette), so convert "
                    "colours to class numbers first"
                )
            return np.asarray(mask).astype(np.int64)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a mask: {error}; replace or remove it and its image") from error


def open_segmentation_data(
    root: Path, classes: int | None, unlabelled: int, zero_is_unlabelled: bool | None
) -> SegmentationData:
    """The pairs below a folder: every mask, every test image and the size of every training image looked at.

    Two layouts: images/{train,val or test} with masks/..., and ADE20K's images/{training,validation} with
    annotations/..., where 0 means unlabelled and classes count from 1 (zero_is_unlabelled: None takes what the layout
    says). A mask has the name of its image and ends in .png. classes: None takes the largest label found. Raises
    InputError where masks are missing, have another size than their image, hold no label, labels out of range, or
    classes in the test images that were never trained on, and where a test image cannot be decoded.
    """
    train, test, ade = _pairs(root)
    shift = int(ade if zero_is_unlabelled is None else zero_is_unlabelled)
    looked = [_look_at(part) for part in (train, test)]
    found = [each.labels - {unlabelled} - ({0} if shift else set()) for each in looked]
    if not found[0] | found[1]:
        raise InputError(f"no mask in {root} holds a label but {unlabelled}; there is nothing to learn or to score")
    if not found[1]:
        raise InputError(
            f"no test mask in {root} holds a label but {unlabelled}; there is nothing to score: add labels, or correct "
            "`unlabelled`"
        )
    if classes is None:
        classes = max(found[0] | found[1]) - shift + 1
    if classes < 2 or classes > UNSCORED:
        raise InputError(f"{root} has {classes} classes of pixels; between 2 and {UNSCORED} can be told apart")
    unseen = sorted(label for label in found[1] - found[0] if 0 <= label - shift < classes)
    if unseen:
        raise InputError(
            f"no training mask in {root} holds label {unseen[0]}, which test masks hold; add such images, or name it "
            "unlabelled if it stands for no class"
        )
    fingerprint = fingerprint_of(chain(*train, *test))
    data = SegmentationData(train, test, classes, unlabelled, shift, looked[0].sizes, looked[1].sizes, fingerprint)
    # What training or, after it, testing would end at: these say what is wrong with the first one.
    if any(not 0 <= label - shift < classes for label in found[0] | found[1]):
        for pair in chain(train, test):
            data.labels(pair.mask)
    for pair in chain(looked[0].doubtful, test):  # a test image that is cut has a good header
        data.load(pair)
    return data


def _pairs(root: Path) -> tuple[tuple[Pair, ...], tuple[Pair, ...], bool]:
    for number, (images, masks, trains, tests) in enumerate(LAYOUTS):
        train = next((name for name in trains if (root / images / name).is_dir()), None)
        # Test images are often published without masks: those that have some come first.
        found = sorted(tests, key=lambda name: not (root / masks / name).is_dir())
        test = next((name for name in found if (root / images / name).is_dir()), None)
        if train and test and (root / masks).is_dir():
            parts = [_pairs_of(root / images / split, root / masks / split) for split in (train, test)]
            return parts[0], parts[1], number == 1
    raise InputError(
        f"{root} has no images with masks; it needs images/train, images/test (or val) and the same below masks, or "
        "ADE20K's images/training, images/validation and the same below annotations"
    )


def _pairs_of(images: Path, masks: Path) -> tuple[Pair, ...]:
    found = sorted(
        path
        for path in images.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not any(map(is_hidden, path.relative_to(images).parts))
    )
    if not found:
        raise InputError(f"{images} holds no images; put the images of this split there")
    pairs = [Pair(image, (masks / image.relative_to(images)).with_suffix(".png")) for image in found]
    missing = [pair for pair in pairs if not pair.mask.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(pairs)} images in {images} have no mask, the first is {missing[0].image.name} "
            f"(looked for {missing[0].mask}); add the masks, or remove the images"
        )
    return tuple(pairs)


class _Looked(NamedTuple):
    """The numbers that some mask holds, the sizes that masks have, and pairs whose image seems to have another."""

    labels: set[int]
    sizes: frozenset[Size]
    doubtful: list[Pair]


def _look_at(pairs: tuple[Pair, ...]) -> _Looked:
    labels: set[int] = set()
    sizes: set[Size] = set()
    doubtful = []
    for pair in pairs:
        mask = read_mask(pair.mask)
        size = (mask.shape[1], mask.shape[0])
        labels |= set(np.unique(mask).tolist())
        sizes.add(size)
        if stored_size(pair.image) != size:  # or EXIF turns it, which decoding tells
            doubtful.append(pair)
    return _Looked(labels, frozenset(sizes), doubtful)
