"""Retrieval of patches: whose neighbours among the patches of other images show the same thing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from cjepa.data import DataConfig
from cjepa.errors import InputError
from cjepa.evaluation.retrieval import found_within
from cjepa.evaluation.segmentation_data import UNSCORED, Pair, SegmentationData, open_segmentation_data
from cjepa.evaluation.sliding import refuse_large, resized_image, starts
from cjepa.evaluation.storage import FeatureStore
from cjepa.evaluation.task import EncoderTask, Values
from cjepa.evaluation.work import Line, Work
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Part

_CHOICE_KEY = 1 << 41
"""Which patches of an image take part is drawn at a step that no other evaluation uses."""


class PatchRetrievalConfig(Part):
    """Patches of test images look for patches of training images of their class by the cosine of frozen features."""

    name: Literal["patch-retrieval"] = "patch-retrieval"
    """Retrieval of patches of the same class."""
    data: Path
    """Folder with images/{train,test} and masks/{train,test}, or with ADE20K's images and annotations."""
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 5, 10)
    """Numbers of nearest training patches looked at; a recall for each."""
    centre: bool = True
    """Subtract the training mean first, a large constant part that patches share."""
    patches: int = Field(32, ge=1)
    """Most patches of an image that take part, a fixed random choice of those with a class."""
    classes: int | None = Field(None, ge=2, lt=UNSCORED)
    """Number of classes (ADE20K: 150); by default as many as the masks hold."""
    unlabelled: int = 255
    """Label in the masks of pixels that belong to no class (CamVid's folder: 11)."""
    zero_is_unlabelled: bool | None = None
    """Whether classes count from 1 and 0 means no class; by default only in ADE20K's layout."""
    shorter_side: int | None = Field(None, ge=8)
    """Pixels of the images' shorter side while they are looked at; null for their own size."""


@dataclass(frozen=True)
class PatchTask(EncoderTask):
    """Images with masks; the encoder sees windows of the size that it was trained with, side by side."""

    config: PatchRetrievalConfig
    data: SegmentationData
    window: tuple[int, int]

    def protocol(self) -> dict[str, Any]:
        """What decides the values besides the keys."""
        return self.data.protocol() | {"image_size": list(self.window)}

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """`patch_recall_5`, percent of the test patches, and `patch_recall_5_classes`, the mean over their classes."""
        encoder = encoder.to(work.device).eval()
        total = len(self.data.train) + len(self.data.test)
        with torch.inference_mode(), work.progress("image", total) as line:
            train, train_labels = self._patches(encoder, self.data.train, 0, work, line)
            test, test_labels = self._patches(encoder, self.data.test, len(self.data.train), work, line)
            found = found_within(self.config.k, self.config.centre, train, train_labels, test, test_labels)
        values = {}
        for k, hits in found.items():
            each = [float(hits[test_labels == label].float().mean()) for label in test_labels.unique()]
            values[f"patch_recall_{k}"] = 100 * float(hits.float().mean())
            values[f"patch_recall_{k}_classes"] = 100 * sum(each) / len(each)
        return values

    def _patches(
        self, encoder: PretrainedEncoder, pairs: tuple[Pair, ...], before: int, work: Work, line: Line
    ) -> tuple[Float[Tensor, "n D"], Int[Tensor, "n"]]:
        labels: list[Tensor] = []
        features = FeatureStore(len(pairs) * self.config.patches, work.scratch)
        for number, pair in enumerate(pairs):
            windows, masks = self._windows(*self.data.load(pair))
            classes = patch_classes(masks, encoder.patch_size)
            kept = _some(classes.flatten(), self.config.patches, before + number)
            if len(kept):
                features.append(self._embedded(encoder, windows, work)[kept])
                labels.append(classes.flatten()[kept])
            line.update(before + number + 1, {}, 1)
        if not labels:
            raise InputError("no patch of the masks has a class; add labels, or correct `unlabelled`")
        return features.so_far(), torch.cat(labels)

    def _windows(
        self, image: Image.Image, mask: UInt8[np.ndarray, "H W"]
    ) -> tuple[UInt8[Tensor, "B 3 h w"], UInt8[Tensor, "B h w"]]:
        """The whole image in windows, black and without class beyond its border."""
        image = resized_image(image, self.config.shorter_side, 1.0)
        labels = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        height, width = (max(pair) for pair in zip((image.height, image.width), self.window, strict=True))
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        classes = np.full((height, width), UNSCORED, dtype=np.uint8)
        pixels[: image.height, : image.width] = np.asarray(image)
        classes[: image.height, : image.width] = np.asarray(labels)
        down, across = self.window
        boxes = [
            (slice(top, top + down), slice(left, left + across))
            for top in starts(height, down, down)
            for left in starts(width, across, across)
        ]
        windows = np.stack([pixels[box] for box in boxes]).transpose(0, 3, 1, 2)
        return torch.from_numpy(windows.copy()), torch.from_numpy(np.stack([classes[box] for box in boxes]))

    def _embedded(
        self, encoder: PretrainedEncoder, windows: UInt8[Tensor, "B 3 h w"], work: Work
    ) -> Float[Tensor, "n D"]:
        parts = []
        for batch in torch.split(windows, work.batch_size):
            with work.autocast():
                patches = encoder(normalise(batch.to(work.device), encoder.mean, encoder.std))
            parts.append(patches.float().cpu().flatten(0, 1))
        return torch.cat(parts)


def open_patch_retrieval(config: PatchRetrievalConfig, data: DataConfig) -> PatchTask:
    """The task with its images. data: how the encoder was trained, for the size of the windows."""
    found = open_segmentation_data(
        config.data.expanduser(), config.classes, config.unlabelled, config.zero_is_unlabelled
    )
    refuse_large(found.train_sizes | found.test_sizes, config.shorter_side, 1.0, "shorter_side")
    return PatchTask(config, found, data.size)


def patch_classes(masks: UInt8[Tensor, "B h w"], patch_size: int) -> Int[Tensor, "B N"]:
    """The class that most pixels of each patch have, the smaller of equals; UNSCORED where most have none."""
    patches = masks.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size).flatten(3).flatten(1, 2)
    return patches.long().mode(2).values


def _some(labels: Int[Tensor, "n"], most: int, image: int) -> Int[Tensor, "m"]:
    """Indices of at most so many patches that have a class, in order."""
    labelled = (labels != UNSCORED).nonzero().flatten()
    draws = torch.from_numpy(uniform_rows(0, Stream.EVALUATION, _CHOICE_KEY + image, 0, len(labels), 1)[:, 0])
    chosen: Tensor = labelled[draws[labelled].argsort()[:most]].sort().values
    return chosen
