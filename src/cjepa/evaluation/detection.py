"""Object detection: torchvision's Mask R-CNN on the encoder, with the simple feature pyramid of ViTDet."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torch.utils.data import Dataset

from cjepa.data import MOST_SIDE, DataConfig
from cjepa.data.order import sample_at
from cjepa.errors import InputError
from cjepa.evaluation.batches import steps_of
from cjepa.evaluation.coco import CocoData, as_results, open_coco, scores
from cjepa.evaluation.fitting import SCALE, Plan, fit, warmup_cosine
from cjepa.evaluation.pyramid import SimplePyramid, as_map
from cjepa.evaluation.task import EncoderTask, Values
from cjepa.evaluation.work import Work
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Part

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
_BOX_FEATURES = 1024  # width of torchvision's head for boxes
_MASKS_AT_ONCE = 8


class DetectionConfig(Part):
    """Boxes and masks of objects by Mask R-CNN, trained with the encoder."""

    name: Literal["detection"] = "detection"
    """Mask R-CNN."""
    data: Path
    """COCO's folder: train2017, val2017, annotations/instances_{train2017,val2017}.json; or named train and val."""
    size: int | None = Field(None, ge=16, le=MOST_SIDE)
    """Side of the squares that images are fitted into (ViTDet: 1024); by default the encoder's training size."""
    epochs: float = Field(25.0, gt=0)
    """Passes over the training images (ViTDet: 100)."""
    batch_size: int = Field(16, ge=1)
    """Images per step (ViTDet: 64)."""
    rate: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate; after a warm-up of a twentieth it falls by half a cosine."""
    tune: float = Field(1.0, ge=0, le=1)
    """Learning rate of the encoder's last LayerNorm relative to that; 0 leaves the encoder frozen."""
    layer_decay: float = Field(0.7, gt=0, le=1)
    """Each block's learning rate is that of what comes after it times this (ViTDet: 0.7 for ViT-B)."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's decay of matrices."""
    channels: int = Field(256, ge=8, multiple_of=8)
    """Width of the pyramid's maps and of the head for masks."""
    regions: int = Field(512, ge=8)
    """Proposals of a training image that the heads for boxes and masks learn from."""


class Backbone(nn.Module):
    """The maps that Mask R-CNN looks at: four of the simple pyramid, and a fifth, coarser one for proposals."""

    def __init__(self, encoder: PretrainedEncoder, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = SimplePyramid(encoder.width, channels)
        self.out_channels = channels

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> OrderedDict[str, Tensor]:
        """Normalised images to maps by name, the finest first."""
        grid = (images.shape[2] // self.encoder.patch_size, images.shape[3] // self.encoder.patch_size)
        maps = self.pyramid(as_map(self.encoder(images), grid))
        named = OrderedDict((str(number), each.float()) for number, each in enumerate(maps))
        named["pool"] = max_pool2d(maps[-1].float(), 1, 2)
        return named


class ObjectBatches(Dataset[Batch]):
    """Training images in squares, half of them mirrored, with boxes, labels and masks: a function of (seed, step)."""

    def __init__(self, data: CocoData, ids: tuple[int, ...], side: int, size: int, seed: int) -> None:
        self.data = data
        self.ids = ids
        self.side = side
        self.size = size
        self.seed = seed

    def __getitem__(self, step: int) -> Batch:
        positions = step * self.size + np.arange(self.size, dtype=np.int64)
        chosen = sample_at(self.seed, positions, len(self.ids))
        draws = uniform_rows(self.seed, Stream.FITTING, step, 0, self.size, 1)[:, 0].tolist()
        items = [self._item(self.ids[int(index)], draw < 0.5) for index, draw in zip(chosen, draws, strict=True)]
        return [image for image, _ in items], [target for _, target in items]

    def _item(self, image_id: int, mirrored: bool) -> tuple[Tensor, dict[str, Tensor]]:
        split = self.data.train
        image = split.load(image_id)
        pixels = fitted(image, self.side)
        size = fitted_size(image, self.side)
        masks, labels = [], []
        for thing in split.objects(image_id):
            resized = Image.fromarray(split.mask(thing)).resize((size[1], size[0]), Image.Resampling.NEAREST)
            if np.asarray(resized).any():
                whole = np.zeros((self.side, self.side), dtype=bool)
                whole[: size[0], : size[1]] = np.asarray(resized)
                masks.append(whole)
                labels.append(self.data.labels.index(thing["category_id"]) + 1)
        stack = torch.from_numpy(np.stack(masks)) if masks else torch.zeros((0, self.side, self.side), dtype=torch.bool)
        if mirrored:
            pixels, stack = pixels.flip(2), stack.flip(2)
        target = {"boxes": boxes_of(stack), "labels": torch.tensor(labels, dtype=torch.int64), "masks": stack.byte()}
        return pixels, target


@dataclass(frozen=True)
class DetectionTask(EncoderTask):
    """Images with objects, and Mask R-CNN."""

    config: DetectionConfig
    data: CocoData
    side: int

    def protocol(self) -> dict[str, Any]:
        """What decides the scores besides the keys."""
        return {
            "train_images": len(self.data.train.ids),
            "test_images": len(self.data.test.ids),
            "classes": len(self.data.labels),
            "image_size": [self.side, self.side],
            "images": self.data.fingerprint,
        }

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """Average precision of boxes and masks of the test images."""
        if self.side % encoder.patch_size:
            raise InputError(f"size: {self.side} cannot be cut into patches of {encoder.patch_size}; use a multiple")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)  # the same start for every encoder
            model = build_detector(copy.deepcopy(encoder), self.config, len(self.data.labels), self.side)
        model = model.to(work.device)
        backbone_of(model).encoder.requires_grad_(self.config.tune > 0)
        fit(self._plan(model, work), work)
        return scores(self.data.test.index, self._found(model.eval(), work))

    def _plan(self, model: nn.Module, work: Work) -> Plan[Batch]:
        config = self.config
        ids = tuple(each for each in self.data.train.ids if self.data.train.objects(each))
        size = min(config.batch_size, len(ids))
        steps = steps_of(config.epochs, len(ids), size)

        def loss(batch: Batch) -> Tensor:
            images = [image.to(work.device).float() / 255 for image in batch[0]]
            targets = [{name: value.to(work.device) for name, value in target.items()} for target in batch[1]]
            losses: dict[str, Tensor] = model(images, targets)
            return torch.stack(list(losses.values())).sum()

        model.train()
        return Plan(
            modules={"model": model},
            optimizer=torch.optim.AdamW(parameter_groups(model, config)),
            batches=ObjectBatches(self.data, ids, self.side, size, work.seed),
            loss=loss,
            rate=lambda step: warmup_cosine(step, steps // 20, steps),
            steps=steps,
            images=size,
            clip=1.0,
        )

    def _found(self, model: nn.Module, work: Work) -> list[dict[str, Any]]:
        split, found = self.data.test, []
        with torch.inference_mode(), work.progress("test image", len(split.ids)) as line:
            for done, image_id in enumerate(split.ids, start=1):
                image = split.load(image_id)
                height, width = fitted_size(image, self.side)
                (prediction,) = model([fitted(image, self.side).to(work.device).float() / 255])
                for part in parts(prediction):
                    part = to_image(part, (height, width), (image.height, image.width))
                    found += as_results(image_id, self.data.labels, part)
                line.update(done, {}, 1)
        return found


def open_detection(config: DetectionConfig, data: DataConfig) -> DetectionTask:
    """The task with its images; InputError without torchvision or pycocotools. data: for the default size."""
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise InputError('detection needs torchvision: pip install "cjepa[detection]"') from error
    side = config.size if config.size is not None else max(data.size)
    return DetectionTask(config, open_coco(config.data.expanduser()), side)


def build_detector(encoder: PretrainedEncoder, config: DetectionConfig, classes: int, side: int) -> nn.Module:
    """Mask R-CNN for images of side x side with values in [0, 1]; class 0 is the background."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    patch = encoder.patch_size
    level = patch.bit_length() - 1
    if patch != 2**level:
        raise InputError(f"detection needs patches whose side is a power of two, not {patch}: its maps halve the image")
    maps = ["0", "1", "2", "3"]
    # One size for each map, two patches at the finest: 32 to 512 pixels for patches of 16, as for COCO.
    sizes = tuple((2 * patch * 2**number,) for number in range(5))
    model: nn.Module = MaskRCNN(
        Backbone(encoder, config.channels),
        box_predictor=FastRCNNPredictor(_BOX_FEATURES, classes + 1),
        mask_head=MaskRCNNHeads(config.channels, (config.channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(config.channels, config.channels, classes + 1),
        min_size=side,
        max_size=side,
        image_mean=list(encoder.mean),
        image_std=list(encoder.std),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        # A box of 14 patches is looked at in the map of the patches' own scale (for 16: 224 pixels at level 4).
        box_roi_pool=MultiScaleRoIAlign(maps, 7, 2, canonical_scale=14 * patch, canonical_level=level),
        mask_roi_pool=MultiScaleRoIAlign(maps, 14, 2, canonical_scale=14 * patch, canonical_level=level),
        size_divisible=patch,
        box_batch_size_per_image=config.regions,
    )
    return model


def fitted_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Height and width of the image when its longer side has `side` pixels."""
    unit = side / max(image.size)
    return max(1, round(image.height * unit)), max(1, round(image.width * unit))


def fitted(image: Image.Image, side: int) -> Tensor:
    """The image in the upper left corner of a grey square: uint8 [3, side, side]."""
    height, width = fitted_size(image, side)
    pixels = np.full((side, side, 3), 114, dtype=np.uint8)
    pixels[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def parts(prediction: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The objects of an image, a few at a time: at the size of a large photograph a mask has 50 MB."""
    count = len(prediction["boxes"])
    for first in range(0, count, _MASKS_AT_ONCE):
        yield {name: values[first : first + _MASKS_AT_ONCE] for name, values in prediction.items()}


def boxes_of(masks: Tensor) -> Float[Tensor, "n 4"]:
    """Left, top, right, bottom of each mask, the last two exclusive."""
    boxes = torch.zeros((len(masks), 4))
    for number, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        boxes[number] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    return boxes


def to_image(prediction: dict[str, Tensor], fitted_to: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes and masks of the square, brought to the image that was fitted into its corner."""
    (height, width), (rows, columns) = fitted_to, size
    scale = torch.tensor([columns / width, rows / height] * 2, device=prediction["boxes"].device)
    boxes = prediction["boxes"] * scale
    limit = torch.tensor([columns, rows] * 2, device=boxes.device)
    masks = prediction["masks"][:, :, :height, :width]
    masks = nn.functional.interpolate(masks, size, mode="bilinear")
    return prediction | {"boxes": torch.minimum(boxes.clamp(min=0), limit), "masks": masks}


def backbone_of(model: nn.Module) -> Backbone:
    """The part of a detector that holds the encoder."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def parameter_groups(model: nn.Module, config: DetectionConfig) -> list[dict[str, Any]]:
    """AdamW's groups: heads and pyramid at `rate`, layer l of the encoder at rate * tune * layer_decay^(L + 1 - l).

    Layer 0 is the patch projection, layer l block l, layer L + 1 the LayerNorm after the last block, as in ViTDet (Li
    et al., 2022) and BEiT; vectors do not decay. A frozen encoder is in no group.
    """
    transformer = backbone_of(model).encoder.encoder
    depth = len(transformer.blocks)
    layers: list[tuple[int, nn.Module]] = [(0, transformer.patch_projection), (depth + 1, transformer.norm)]
    layers += enumerate(transformer.blocks, start=1)
    scales = {
        id(each): config.rate * config.tune * config.layer_decay ** (depth + 1 - layer)
        for layer, module in layers
        for each in module.parameters()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (scales.get(id(parameter), config.rate), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": config.weight_decay * decays, SCALE: scale, "lr": scale}
        for (scale, decays), parameters in groups.items()
    ]
