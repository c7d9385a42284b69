"""Where images come from: sources, their order, crops, and training batches. One file per source."""

from typing import assert_never

from cjepa.data.config import DataConfig, SourceConfig
from cjepa.data.decoding import UnreadableImageError, decode
from cjepa.data.demo import DemoConfig, open_demo
from cjepa.data.evaluation_images import EvaluationImages, TwoCrops
from cjepa.data.folder import FolderConfig, open_folder
from cjepa.data.source import NO_LABEL, ImageSource, Splits, holdout, labelled_only
from cjepa.data.stream import TrainingStream, iterate

__all__ = [
    "NO_LABEL",
    "DataConfig",
    "DemoConfig",
    "EvaluationImages",
    "FolderConfig",
    "ImageSource",
    "SourceConfig",
    "Splits",
    "TrainingStream",
    "TwoCrops",
    "UnreadableImageError",
    "decode",
    "holdout",
    "iterate",
    "labelled_only",
    "open_source",
]


def open_source(config: DataConfig, seed: int) -> Splits:
    """The images that a config names; raises InputError when they are missing or cannot be used."""
    match config.source:
        case FolderConfig() as folder:
            return open_folder(folder, config.max_pixels)
        case DemoConfig() as demo:
            return open_demo(demo, seed)
        case _ as never:
            assert_never(never)
