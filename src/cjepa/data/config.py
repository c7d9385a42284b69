"""Where images come from and how they are cropped."""

import os
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator

from cjepa.data.augmentation import ViewsConfig
from cjepa.data.decoding import PILLOW_LIMIT
from cjepa.data.demo import DemoConfig
from cjepa.data.folder import FolderConfig
from cjepa.data.huggingface import HuggingFaceConfig
from cjepa.data.lists import ListConfig
from cjepa.data.loader import PATIENCE
from cjepa.data.parquet import ParquetConfig
from cjepa.data.shards import ShardsConfig
from cjepa.data.torchvision_sets import TorchvisionConfig
from cjepa.ranks import local_count
from cjepa.types import Part

SourceConfig = Annotated[
    FolderConfig | ShardsConfig | ListConfig | ParquetConfig | HuggingFaceConfig | TorchvisionConfig | DemoConfig,
    Field(discriminator="name"),
]

_MOST_WORKERS = 8

MOST_SIDE = 8192
"""Pixels of a side that an encoder is shown at most; more is a slip that takes all memory."""
Side = Annotated[int, Field(ge=4, le=MOST_SIDE)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, lt=float("inf"))]
Channel = Annotated[float, Field(ge=0.0, le=1.0)]


class DataConfig(Part):
    """Images, their crops and how they are loaded."""

    shorthand: ClassVar[str | None] = "source"

    source: SourceConfig
    """Where images come from. data=PATH is a folder of images or, which is recognised, a folder of shards that
    `cjepa shard` made or indexed, a .parquet file or a list (.txt, .tsv, .lst). The rest is chosen by its name:
    data.source=torchvision begins with its defaults, data.source.name=torchvision keeps the path that was set."""
    image_size: Side | tuple[Side, Side] = 224
    """Side of the square images that the encoder sees, or their height and width, in pixels."""
    crop_scale: tuple[Share, Share] = (0.3, 1.0)
    """Area of a training crop as a share of the image: smallest and largest."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Width over height of a training crop, relative to that of image_size: smallest and largest."""
    flip: bool = False
    """Mirror half of the training crops; the paper does not."""
    views: ViewsConfig = Field(default_factory=lambda: ViewsConfig())
    """The two views that objective=vicreg and objective=simsiam compare."""
    evaluation_crop: Share = 1.0
    """Share of the shorter side that the centre crop for evaluation covers."""
    mean: tuple[Channel, Channel, Channel] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in [0, 1] that normalisation subtracts; the default is ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue that normalisation divides by; the default is ImageNet's."""
    workers: int | None = Field(None, ge=0, le=256)
    """Processes that decode images, 0 for the main one; by default that, or with a GPU one for each free core, 8 at
    most. The batches are the same for any number."""
    cache: Path | None = None
    """Folder of decoded images, which runs may share; by default they lie in the run folder until the run is done."""
    cache_bytes: int = Field(1 << 30, ge=0)
    """Decode the training images only once if all of them take no more bytes than this; 0: never. Same pixels."""
    worker_timeout: float = Field(PATIENCE, gt=0, le=1e6)
    """Seconds without a batch from the workers before the run is saved and stops, naming what they are reading."""
    max_pixels: int = Field(64_000_000, gt=0, le=PILLOW_LIMIT)
    """Images with more pixels, by their header, count as unreadable; bounds memory to 16 bytes a pixel."""
    max_unreadable_share: float = Field(0.05, ge=0.0, le=1.0)
    """Share of images that may be unreadable, and are replaced by others, before the run stops."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def processes(self) -> int:
        """The number of workers: on a CPU they would take cores from the step, beside a GPU they are needed."""
        if self.workers is not None:
            return self.workers
        if not torch.cuda.is_available():
            return 0
        return min(max(_usable_cores() // local_count() - 1, 0), _MOST_WORKERS)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> "DataConfig":
        for key, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if low > high:
                raise ValueError(f"{key}: the first value ({low}) must not exceed the second ({high})")
        return self


def _usable_cores() -> int:
    """Of a machine that is shared, a scheduler or container gives a process some of its cores."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
