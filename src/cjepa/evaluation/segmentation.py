"""Semantic segmentation: a linear head, Semantic FPN or UPerNet on the frozen or tuned encoder."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import Dataset

from cjepa.data import MOST_SIDE, DataConfig
from cjepa.data.order import sample_at
from cjepa.errors import InputError
from cjepa.evaluation.batches import steps_of
from cjepa.evaluation.confusion import confusion_of, segmentation_scores
from cjepa.evaluation.fitting import SCALE, Plan, fit, warmup_cosine
from cjepa.evaluation.pooling import layers_of
from cjepa.evaluation.pyramid import LinearHead, SemanticFpn, as_map
from cjepa.evaluation.segmentation_data import UNSCORED, Pair, SegmentationData, open_segmentation_data
from cjepa.evaluation.sliding import multi_scale, refuse_large, resized_image
from cjepa.evaluation.task import EncoderTask, Values
from cjepa.evaluation.upernet import UperNet, tapped_blocks
from cjepa.evaluation.whitening import Moments, Whitening
from cjepa.evaluation.work import Work
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Part

Positive = Annotated[float, Field(gt=0)]
_WHITENED_STEPS = 64
"""Batches of windows whose patches are decorrelated: ten thousands of patches, more than any encoder has features."""


class SegmentationConfig(Part):
    """A class for every pixel: a head is trained on windows of images with masks, the encoder frozen or tuned."""

    name: Literal["segmentation"] = "segmentation"
    """Semantic segmentation."""
    data: Path
    """Folder with images/{train,test} and masks/{train,test}, or with ADE20K's images and annotations."""
    head: Literal["linear", "fpn", "upernet"] = "linear"
    """A linear layer on every patch, Semantic FPN on the simple feature pyramid, or UPerNet on four blocks."""
    layers: int = Field(1, ge=1)
    """Last blocks whose patches are concatenated for the linear head (DINOv2: also 4)."""
    whiten: bool = True
    """Decorrelate frozen patches before the linear layer; false: batch norm alone, as DINOv2, and far more epochs."""
    channels: int = Field(256, ge=1)
    """Width of the maps of Semantic FPN and UPerNet."""
    tune: float = Field(0.0, ge=0, le=1)
    """Learning rate of the encoder relative to the head's; 0 leaves it frozen."""
    classes: int | None = Field(None, ge=2, lt=UNSCORED)
    """Number of classes (ADE20K: 150); by default as many as the masks hold."""
    unlabelled: int = 255
    """Label in the masks of pixels that belong to no class (CamVid's folder: 11)."""
    zero_is_unlabelled: bool | None = None
    """Whether classes count from 1 and 0 means no class; by default only in ADE20K's layout."""
    shorter_side: int | None = Field(None, ge=8)
    """Pixels of the images' shorter side while they are looked at; scores are at the masks' own size."""
    window: int | None = Field(None, ge=4, le=MOST_SIDE)
    """Side of the square windows that the encoder sees; by default the size that it was trained with."""
    stride: float = Field(2 / 3, gt=0, le=1)
    """Distance of neighbouring windows at inference as a share of their side."""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    """Sizes at which an image is looked at for inference; predictions are averaged."""
    mirror: bool = False
    """Also look at the mirror image."""
    train_scales: tuple[Positive, Positive] = (0.5, 2.0)
    """Smallest and largest factor on the size of training images, drawn log-uniformly."""
    epochs: float = Field(40.0, gt=0)
    """Passes over the training images, one window of each."""
    batch_size: int = Field(16, ge=2)
    """Windows per step, at most one of each image."""
    rate: float = Field(1e-3, gt=0)
    """AdamW's peak learning rate; after a warm-up of a twentieth it falls by half a cosine."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's decay of matrices."""


Batch = tuple[Tensor, Tensor]


class Windows(Dataset[Batch]):
    """Random windows of training images and their masks, a function of (seed, step)."""

    def __init__(
        self, config: SegmentationConfig, data: SegmentationData, window: tuple[int, int], size: int, seed: int
    ) -> None:
        self.config = config
        self.data = data
        self.window = window
        self.size = size
        self.seed = seed

    def __getitem__(self, step: int) -> tuple[UInt8[Tensor, "B 3 h w"], Int[Tensor, "B h w"]]:
        positions = step * self.size + np.arange(self.size, dtype=np.int64)
        samples = sample_at(self.seed, positions, len(self.data.train))
        draws = uniform_rows(self.seed, Stream.FITTING, step, 0, self.size, 4)
        windows = [
            self._window(self.data.train[index], *row) for index, row in zip(samples, draws.tolist(), strict=True)
        ]
        return torch.stack([image for image, _ in windows]), torch.stack([mask for _, mask in windows])

    def _window(self, pair: Pair, scale: float, down: float, across: float, mirror: float) -> Batch:
        image, mask = self.data.load(pair)
        low, high = self.config.train_scales
        image = resized_image(image, self.config.shorter_side, low * (high / low) ** scale)
        labels = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        height, width = self.window
        top = int(down * (max(image.height - height, 0) + 1))
        left = int(across * (max(image.width - width, 0) + 1))
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        target = np.full((height, width), UNSCORED, dtype=np.int64)
        part = np.asarray(image.crop(box))
        pixels[: part.shape[0], : part.shape[1]] = part
        target[: part.shape[0], : part.shape[1]] = np.asarray(labels.crop(box))
        if mirror < 0.5:
            pixels, target = pixels[:, ::-1], target[:, ::-1]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(target.copy())


class Segmenter(nn.Module):
    """Encoder and head: logits of every pixel of normalised windows."""

    def __init__(self, encoder: PretrainedEncoder, config: SegmentationConfig, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        depth = len(encoder.encoder.blocks)
        self.head: nn.Module
        match config.head:
            case "linear":
                self.head = LinearHead(encoder.width * config.layers, classes, config.whiten and config.tune == 0)
                self.blocks = tuple(range(depth - config.layers, depth))
            case "fpn":
                self.head = SemanticFpn(encoder.width, classes, config.channels)
                self.blocks = (depth - 1,)
            case "upernet":
                self.head = UperNet(encoder.width, classes, config.channels)
                self.blocks = tapped_blocks(depth)
            case _:
                assert_never(config.head)

    def forward(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h w"]:
        """Logits, brought from the grid of patches to the pixels."""
        return interpolate(self.head(self.maps(images)).float(), images.shape[2:], mode="bilinear")

    def maps(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B F rows columns"]:
        """Patches of the blocks that the head reads, side by side."""
        depth, first = len(self.encoder.encoder.blocks), self.blocks[0]
        outputs = layers_of(self.encoder, images, depth - first, norm=True)
        patches = torch.cat([outputs[block - first] for block in self.blocks], 2)
        height, width = (side // self.encoder.patch_size for side in images.shape[2:])
        return as_map(patches, (height, width))


@dataclass(frozen=True)
class SegmentationTask(EncoderTask):
    """Images with masks, and the head."""

    config: SegmentationConfig
    data: SegmentationData
    window: tuple[int, int]

    def protocol(self) -> dict[str, Any]:
        """What decides the scores besides the keys."""
        return self.data.protocol() | {"image_size": list(self.window)}

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """mIoU, mAcc and aAcc of the test images."""
        if any(side % encoder.patch_size for side in self.window):
            raise InputError(
                f"window: {self.window} cannot be cut into patches of {encoder.patch_size}; use a multiple"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)  # the same head for every encoder
            model = Segmenter(copy.deepcopy(encoder), self.config, self.data.classes).to(work.device)
        model.encoder.requires_grad_(self.config.tune > 0)
        fit(self._plan(model, work), work)
        return segmentation_scores(self._confusion(model.eval(), work))

    def _plan(self, model: Segmenter, work: Work) -> Plan[Batch]:
        config = self.config
        size = min(config.batch_size, len(self.data.train))
        steps = steps_of(config.epochs, len(self.data.train), size)
        whitened = min(steps, _WHITENED_STEPS)

        def loss(batch: Batch) -> Tensor:
            images, labels = (part.to(work.device) for part in batch)
            with work.autocast():
                logits = model(normalise(images, model.encoder.mean, model.encoder.std))
            scored = labels != UNSCORED
            # A window without any label gives no gradient instead of 0 / 0.
            return cross_entropy(logits, labels, ignore_index=UNSCORED, reduction="sum") / scored.sum().clamp(min=1)

        model.train()
        model.encoder.train(config.tune > 0)
        trained: dict[str, nn.Module] = {"head": model.head}
        if config.tune > 0:
            trained["encoder"] = model.encoder
        return Plan(
            modules=trained,
            optimizer=torch.optim.AdamW(_groups(model, config)),
            batches=Windows(config, self.data, self.window, size, work.seed),
            loss=loss,
            rate=lambda step: warmup_cosine(step, steps // 20, steps),
            steps=steps,
            images=size,
            prepare=self._whitening(model, whitened, work),
            prepared=whitened,
        )

    def _whitening(self, model: Segmenter, steps: int, work: Work) -> Callable[[Iterable[Batch]], None] | None:
        """What tells a whitening head the moments of patches; None for any other head."""
        norm = model.head.norm if isinstance(model.head, LinearHead) else None
        if not isinstance(norm, Whitening):
            return None

        def learn(batches: Iterable[Batch]) -> None:
            moments = Moments(model.encoder.width * len(model.blocks), work.device)
            with torch.inference_mode(), work.progress("whitening", steps) as line:
                for step, (windows, _) in enumerate(batches, start=1):
                    images = windows.to(work.device)
                    with work.autocast():
                        maps = model.maps(normalise(images, model.encoder.mean, model.encoder.std))
                    moments.add(maps.float().permute(0, 2, 3, 1).flatten(0, 2))
                    line.update(step, {}, len(images))
            norm.learn(moments)

        return learn

    def _confusion(self, model: Segmenter, work: Work) -> Int[np.ndarray, "C C"]:
        config, total = self.config, np.zeros((self.data.classes, self.data.classes), dtype=np.int64)

        def predict(windows: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h w"]:
            with work.autocast():
                return model(normalise(windows, model.encoder.mean, model.encoder.std)).softmax(1)

        with torch.inference_mode(), work.progress("test image", len(self.data.test)) as line:
            for done, pair in enumerate(self.data.test, start=1):
                image, mask = self.data.load(pair)
                probabilities = multi_scale(
                    image,
                    predict,
                    self.window,
                    config.shorter_side,
                    config.scales,
                    config.mirror,
                    config.stride,
                    work.batch_size,
                    work.device,
                )
                total += confusion_of(mask.astype(np.int64), probabilities.argmax(0).cpu().numpy(), self.data.classes)
                line.update(done, {}, 1)
        if total.sum() == 0:
            raise InputError("no pixel of the test masks has a label; add labels, or correct `unlabelled`")
        return total


def open_segmentation(config: SegmentationConfig, data: DataConfig) -> SegmentationTask:
    """The task with its images. data: how the encoder was trained, for the size of the windows."""
    window = data.size if config.window is None else (config.window, config.window)
    found = open_segmentation_data(
        config.data.expanduser(), config.classes, config.unlabelled, config.zero_is_unlabelled
    )
    refuse_large(found.train_sizes, config.shorter_side, max(config.train_scales), "train_scales")
    refuse_large(found.test_sizes, config.shorter_side, max(config.scales), "scales")
    return SegmentationTask(config, found, window)


def _groups(model: Segmenter, config: SegmentationConfig) -> list[dict[str, Any]]:
    groups = []
    for module, scale in ((model.head, config.rate), (model.encoder, config.rate * config.tune)):
        for decays in (True, False):
            parameters = [each for each in module.parameters() if each.requires_grad and (each.ndim >= 2) == decays]
            if parameters:
                decay = config.weight_decay * decays
                groups.append({"params": parameters, "weight_decay": decay, SCALE: scale, "lr": scale})
    return groups
