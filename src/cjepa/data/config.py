"""Where images come from and how they are cropped."""

from typing import Annotated, ClassVar

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
from cjepa.types import Part

SourceConfig = Annotated[
    FolderConfig | ShardsConfig | ListConfig | ParquetConfig | HuggingFaceConfig | TorchvisionConfig | DemoConfig,
    Field(discriminator="name"),
]

Side = Annotated[int, Field(ge=4, le=8192)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, lt=float("inf"))]
Channel = Annotated[float, Field(ge=0.0, le=1.0)]


class DataConfig(Part):
    """Images, their crops and how they are loaded."""

    shorthand: ClassVar[str | None] = "source"

    source: SourceConfig
    """Where images come from. data=PATH is a folder of images or, which is recognised, a folder of shards that
    `cjepa shard` made or indexed, a .parquet file or a list (.txt, .tsv). The rest is chosen by data.source.name."""
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
    workers: int = Field(0, ge=0, le=256)
    """Processes that decode images, 0 for the main one; the batches are the same for any number."""
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

    @model_validator(mode="after")
    def _ranges_ascend(self) -> "DataConfig":
        for key, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if low > high:
                raise ValueError(f"{key}: the first value ({low}) must not exceed the second ({high})")
        return self
