"""Where images come from: sources, their order, crops, and training batches. One file per source."""

from typing import assert_never

from cjepa.data.arrays import ArraySource
from cjepa.data.cache import CachedSource
from cjepa.data.config import MOST_SIDE, DataConfig, SourceConfig
from cjepa.data.decoding import UnreadableImageError, decode
from cjepa.data.demo import DemoConfig, open_demo
from cjepa.data.device_crops import DeviceImages, device_images
from cjepa.data.evaluation_images import EvaluationImages, TwoCrops
from cjepa.data.files import FileSource
from cjepa.data.folder import FolderConfig, lies_among_images, open_folder
from cjepa.data.huggingface import HuggingFaceConfig, open_huggingface
from cjepa.data.lists import ListConfig, open_list
from cjepa.data.names import printable
from cjepa.data.parquet import ParquetConfig, ParquetSource, open_parquet
from cjepa.data.shards import ShardsConfig, ShardSource, is_sharded, open_shards
from cjepa.data.source import NO_LABEL, ImageSource, Splits, holdout, labelled_only
from cjepa.data.stream import TrainingStream, iterate
from cjepa.data.torchvision_sets import TorchvisionConfig, open_torchvision
from cjepa.data.views import ViewsStream
from cjepa.errors import InputError

LIST_EXTENSIONS = (".txt", ".tsv", ".lst")

__all__ = [
    "MOST_SIDE",
    "NO_LABEL",
    "ArraySource",
    "CachedSource",
    "DataConfig",
    "DemoConfig",
    "DeviceImages",
    "EvaluationImages",
    "FileSource",
    "FolderConfig",
    "HuggingFaceConfig",
    "ImageSource",
    "ListConfig",
    "ParquetConfig",
    "ParquetSource",
    "ShardSource",
    "ShardsConfig",
    "SourceConfig",
    "Splits",
    "TorchvisionConfig",
    "TrainingStream",
    "TwoCrops",
    "UnreadableImageError",
    "ViewsStream",
    "decode",
    "device_images",
    "holdout",
    "iterate",
    "labelled_only",
    "lies_among_images",
    "open_source",
    "recognised",
]


def open_source(config: DataConfig, seed: int, at_least: int = 2) -> Splits:
    """The images that a config names; InputError when they are missing, cannot be used, or are too few to train on."""
    try:
        splits = _opened(config, seed)
    except OSError as error:  # not to be entered, too long a name, gone while it was listed, a server that is away
        raise InputError(
            f"data: {printable(str(error.filename or 'the images'))} cannot be read: {error.strerror or error}; "
            "check the path, its permissions and the disk"
        ) from error
    if len(splits.train) < at_least:
        raise InputError(
            f"data: only one image is there to train on ({splits.train.names[0]}); training needs at least {at_least}, "
            "evaluation many more"
        )
    return splits


def _opened(config: DataConfig, seed: int) -> Splits:
    match recognised(config.source):
        case FolderConfig() as folder:
            return open_folder(folder, config.max_pixels)
        case ShardsConfig() as shards:
            return open_shards(shards, config.max_pixels)
        case ListConfig() as listed:
            return open_list(listed, config.max_pixels)
        case ParquetConfig() as parquet:
            return open_parquet(parquet, config.max_pixels)
        case HuggingFaceConfig() as hub:
            return open_huggingface(hub, config.max_pixels)
        case TorchvisionConfig() as known:
            return open_torchvision(known, config.max_pixels)
        case DemoConfig() as demo:
            return open_demo(demo, seed)
        case _ as never:
            assert_never(never)


def recognised(source: SourceConfig) -> SourceConfig:
    """What a path given as a folder (data=PATH) turns out to be: shards with an index, or a file of a known kind."""
    if not isinstance(source, FolderConfig):
        return source
    path = source.path.expanduser()
    if is_sharded(path):
        return ShardsConfig(path=source.path)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return ParquetConfig(path=source.path)
    if path.is_file() and path.suffix.lower() in LIST_EXTENSIONS:
        return ListConfig(path=source.path)
    return source
