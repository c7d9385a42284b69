"""Data sets of torchvision, made here in the formats in which they are published."""

import gzip
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from cjepa.data import DataConfig, TorchvisionConfig, open_source
from cjepa.data.arrays import ArraySource
from cjepa.data.files import FileSource
from cjepa.data.source import Splits
from cjepa.data.torchvision_sets import InFiles, InMemory, open_torchvision
from cjepa.errors import InputError
from tests.data.packing import picture


def opened(name: str, path: Path) -> Splits:
    return open_torchvision(TorchvisionConfig(dataset=name, path=path), 100_000)


def write_mnist(root: Path, name: str = "MNIST") -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("t10k", 3)):
        pixels, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8)
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of six images to train on, one of four to test on, with their MD5 made known to torchvision."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng, sums = np.random.default_rng(0), {}
    for name, count in (("data_batch_1", 6), ("test_batch", 4)):
        batch = {"data": rng.integers(0, 256, (count, 3072), np.uint8), "labels": list(range(count))}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def write_food(root: Path) -> None:
    (root / "food-101" / "meta").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 2)):
        names = {kind: [f"{kind}/{split}{number}" for number in range(count)] for kind in ("pie", "rice")}
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))
        for name in (*names["pie"], *names["rice"]):
            path = root / "food-101" / "images" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(len(name), "JPEG"))


def test_grey_images_in_memory(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    splits = opened("MNIST", tmp_path)
    assert isinstance(splits.train, ArraySource)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (7, 3)
    assert splits.train.labels.tolist() == list(range(7))
    assert splits.train.classes == tuple(datasets.MNIST.classes)
    theirs = datasets.MNIST(tmp_path, train=True)
    for index in range(7):
        image, label = theirs[index]
        np.testing.assert_array_equal(np.asarray(splits.train.load(index)), np.asarray(image.convert("RGB")))
        assert label == splits.train.labels[index]
    assert splits.train.names[2] == "train/000002"
    assert splits.train.fingerprint != splits.test.fingerprint


def test_coloured_images_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    splits = open_source(DataConfig(source=TorchvisionConfig(dataset="CIFAR10", path=tmp_path), image_size=32), 0)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (6, 4)
    theirs = datasets.CIFAR10(tmp_path, train=False)
    for index in range(4):
        np.testing.assert_array_equal(np.asarray(splits.test.load(index)), np.asarray(theirs[index][0]))
    assert splits.test.classes[3] == "class 3"


def test_unlabelled_images_of_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        (folder / f"{name}_X.bin").write_bytes(rng.integers(0, 256, (count, 3, 96, 96), np.uint8).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes(range(1, count + 1)))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    splits = opened("STL10", tmp_path)
    assert splits.train.labels.tolist() == [0, 1, 2, -1, -1, -1, -1]
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0, 1]
    theirs = datasets.STL10(tmp_path, split="unlabeled")
    np.testing.assert_array_equal(np.asarray(splits.train.load(5)), np.asarray(theirs[2][0]))


def test_files(tmp_path: Path) -> None:
    write_food(tmp_path)
    splits = opened("Food101", tmp_path)
    assert isinstance(splits.train, FileSource)
    assert splits.test is not None
    assert splits.train.names[0] == "food-101/images/pie/train0.jpg"
    assert splits.train.classes == ("pie", "rice")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    theirs = datasets.Food101(tmp_path, split="test")
    for index in range(4):
        np.testing.assert_array_equal(np.asarray(splits.test.load(index)), np.asarray(theirs[index][0]))


@pytest.mark.parametrize("name", [*get_args(InMemory), *get_args(InFiles)])
def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"could not open the .* split of {name} .*data\.source\.download=true"):
        opened(name, tmp_path)


def test_a_list_that_leads_out_is_refused(tmp_path: Path) -> None:
    write_food(tmp_path / "root")
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.jpg")
    meta = tmp_path / "root" / "food-101" / "meta" / "train.json"
    meta.write_text(json.dumps({"pie": ["../../../secret"]}))
    with pytest.raises(InputError, match=r"secret\.jpg is listed but not below"):
        opened("Food101", tmp_path / "root")


def test_a_payload_in_place_of_a_known_archive_is_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="could not open the train split of CIFAR10"):
        opened("CIFAR10", tmp_path)
    assert not marker.exists()


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(InputError, match=r'pip install "cjepa\[torchvision\]"'):
        opened("MNIST", tmp_path)
