"""Data sets that torchvision knows by name, with their own splits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

from cjepa.data.arrays import ArraySource
from cjepa.data.files import FileList, FileSource
from cjepa.data.source import ImageSource, Splits
from cjepa.errors import InputError
from cjepa.types import Part

InMemory = Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "STL10", "SVHN"]
InFiles = Literal["Flowers102", "Food101", "DTD", "FGVCAircraft"]


class TorchvisionConfig(Part):
    """A data set that torchvision knows by name; see open_torchvision."""

    name: Literal["torchvision"] = "torchvision"
    """The kind of source; data.source lists all."""
    dataset: InMemory | InFiles
    """Its name in torchvision.datasets. Other sets of torchvision are folders: data=DIR."""
    path: Path
    """The folder that it lies in, or is downloaded to: torchvision's `root`."""
    download: bool = False
    """Let torchvision download what is missing."""


class _Splits(NamedTuple):
    """What torchvision calls the splits to train and to test on."""

    train: str
    test: str = "test"


_SPLITS: dict[str, _Splits] = {"STL10": _Splits("train+unlabeled"), "FGVCAircraft": _Splits("trainval")}


def open_torchvision(config: TorchvisionConfig, max_pixels: int) -> Splits:
    """The training and the test split of a data set; STL10 is trained on with its unlabelled images.

    The small sets (CIFAR, MNIST and their kin, STL10, SVHN) are held in memory, the others are files. torchvision
    verifies the archives it knows by their MD5, also before it unpickles those of CIFAR. Raises InputError when the
    set or torchvision is missing.
    """
    names = _SPLITS.get(config.dataset, _Splits("train"))
    return Splits(_opened(config, names.train, max_pixels), _opened(config, names.test, max_pixels))


def _opened(config: TorchvisionConfig, split: str, max_pixels: int) -> ImageSource:
    try:
        return _source(config, split, max_pixels)
    except ImportError as error:
        raise InputError(
            f'data: torchvision cannot be used ({error}); run: pip install "cjepa[torchvision]"'
        ) from error
    except InputError:
        raise
    except Exception as error:  # whatever torchvision and the network raise
        raise InputError(
            f"data: torchvision could not open the {split} split of {config.dataset} in {config.path}: {error} "
            "(with cjepa: data.source.download=true)"
        ) from error


def _source(config: TorchvisionConfig, split: str, max_pixels: int) -> ImageSource:
    from torchvision import datasets

    root, name, download = config.path.expanduser(), config.dataset, config.download
    kind = getattr(datasets, name)
    match name:
        case "CIFAR10" | "CIFAR100":
            made = kind(root, train=split == "train", download=download)
            return _in_memory(made.data.transpose(0, 3, 1, 2), made.targets, made.classes, split)
        case "MNIST" | "FashionMNIST" | "KMNIST":
            made = kind(root, train=split == "train", download=download)
            grey = made.data.numpy()
            images = np.broadcast_to(grey[:, None], (len(grey), 3, *grey.shape[1:]))
            return _in_memory(images, made.targets.numpy(), made.classes, split)
        case "STL10":
            made = kind(root, split=split, download=download)
            return _in_memory(made.data, made.labels, made.classes, split)
        case "SVHN":
            made = kind(root, split=split, download=download)
            return _in_memory(made.data, made.labels, [str(digit) for digit in range(10)], split)
        case "Flowers102" | "Food101" | "DTD" | "FGVCAircraft":
            made = kind(root, split=split, download=download, loader=Path)  # its items are then (path, label)
            return _files(root, [made[index] for index in range(len(made))], made.classes, max_pixels)
        case _ as never:
            assert_never(never)


def _in_memory(
    images: npt.NDArray[np.uint8], labels: Sequence[int] | npt.NDArray[np.integer], classes: Sequence[str], split: str
) -> ArraySource:
    """Images uint8 [n, 3, H, W]; labels below 0 are none."""
    numbers = np.maximum(np.asarray(labels, dtype=np.int64), -1)
    return ArraySource(images, numbers, tuple(classes), [f"{split}/{index:06d}" for index in range(len(images))])


def _files(root: Path, items: Sequence[tuple[Path, int]], classes: Sequence[str], max_pixels: int) -> FileSource:
    files = FileList()
    for path, _ in items:
        name = os.path.relpath(path, root)
        if ".." in Path(name).parts:
            raise InputError(f"data: {path} is listed but not below {root}; get the data set again")
        files.add(os.fsencode(name), path.stat().st_size)
    labels = np.array([label for _, label in items], dtype=np.int64)
    return FileSource(root, files, labels, tuple(classes), max_pixels)
