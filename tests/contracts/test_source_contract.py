"""What every source of images must do. A new one in the union is tested as soon as it can be opened here."""

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from cjepa.data import (
    NO_LABEL,
    DataConfig,
    DemoConfig,
    FolderConfig,
    HuggingFaceConfig,
    ImageSource,
    ListConfig,
    ParquetConfig,
    ShardsConfig,
    SourceConfig,
    Splits,
    TorchvisionConfig,
    TrainingStream,
    iterate,
    open_source,
)
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.runs import index_shards
from cjepa.types import Batch
from tests.data.packing import picture, write_shards
from tests.data.test_huggingface import COMMIT
from tests.data.test_parquet import hub_table, write
from tests.data.test_torchvision_sets import write_food, write_mnist

VARIANTS = get_args(get_args(SourceConfig)[0])


def folder(root: Path) -> FolderConfig:
    for number in range(12):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[number % 2] / f"{number:02d}.png").write_bytes(picture(number))
    return FolderConfig(path=root)


def listed(root: Path) -> ListConfig:
    folder(root)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    (root / "list.tsv").write_text("".join(f"{name}\t{name[0]}\n" for name in names))
    return ListConfig(path=root / "list.tsv")


def shards(root: Path) -> ShardsConfig:
    index_shards(write_shards(root), root)
    return ShardsConfig(path=root)


def parquet(root: Path) -> ParquetConfig:
    write(root / "train.parquet", hub_table(range(12), [number % 2 for number in range(12)], ["a", "b"]))
    write(root / "test.parquet", hub_table(range(4), [0, 1, 0, 1], ["a", "b"]))
    return ParquetConfig(path=root)


def hub(root: Path) -> HuggingFaceConfig:
    repository = root / "datasets--a--b"
    parquet(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return HuggingFaceConfig(id="a/b", path=root)


def in_memory(root: Path) -> TorchvisionConfig:
    write_mnist(root)
    return TorchvisionConfig(dataset="MNIST", path=root)


def in_files(root: Path) -> TorchvisionConfig:
    write_food(root)
    return TorchvisionConfig(dataset="Food101", path=root)


def demo(_: Path) -> DemoConfig:
    return DemoConfig(train_crops=2, test_crops=1, labelled_crops=1)


MAKERS: dict[str, Callable[[Path], SourceConfig]] = {
    maker.__name__: maker for maker in (folder, listed, shards, parquet, hub, in_memory, in_files, demo)
}


@pytest.fixture(scope="module", params=MAKERS)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp(request.param) / "data"
    root.mkdir()
    return DataConfig(source=MAKERS[request.param](root), image_size=16)


@pytest.fixture
def splits(config: DataConfig) -> Splits:
    return open_source(config, 0)


def test_every_variant_is_tested(tmp_path: Path) -> None:
    made = set()
    for name, maker in MAKERS.items():
        (tmp_path / name).mkdir()
        made.add(type(maker(tmp_path / name)))
    assert made == set(VARIANTS)


def test_both_splits_keep_the_protocol(splits: Splits) -> None:
    for source in filter(None, (splits.train, splits.test)):
        assert isinstance(source, ImageSource)
        assert len(source) == len(source.names) == len(source.labels) > 1
        assert source.labels.dtype == np.int64
        assert source.labels.min() >= NO_LABEL
        assert source.labels.max() < len(source.classes)
        assert len(set(source.names)) == len(source)
        assert all(name.isprintable() for name in source.names)
        assert len(source.fingerprint) == 64
        for index in range(len(source)):
            assert source.load(index).mode == "RGB"
    assert splits.test is None or splits.train.classes == splits.test.classes


def test_opening_again_gives_the_same(config: DataConfig, splits: Splits) -> None:
    again = open_source(config, 0)
    assert again.train.fingerprint == splits.train.fingerprint
    assert list(again.train.names) == list(splits.train.names)
    for index in range(len(splits.train)):
        np.testing.assert_array_equal(np.asarray(again.train.load(index)), np.asarray(splits.train.load(index)))


def pixels(source: ImageSource, indices: list[int]) -> list[bytes]:
    return [source.load(index).tobytes() for index in indices]


def test_a_source_goes_into_another_process(splits: Splits) -> None:
    indices = [3, 0, len(splits.train) - 1]
    splits.train.load(1)
    assert pixels(pickle.loads(pickle.dumps(splits.train)), indices) == pixels(splits.train, indices)


@pytest.mark.slow  # starting an interpreter with torch takes seconds
def test_a_source_goes_into_a_spawned_process(splits: Splits) -> None:
    indices = [3, 0, len(splits.train) - 1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(pixels, (splits.train, indices)) == pixels(splits.train, indices)


def test_batches_are_the_same_for_any_number_of_workers(config: DataConfig, splits: Splits) -> None:
    sampler = build_sampler(MultiblockConfig(), (8, 8), 0, 4)
    stream = TrainingStream(splits.train, config, sampler, 4, seed=1)
    splits.train.load(0)  # files that are open before a fork

    def taken(workers: int) -> list[Batch]:
        return list(iterate(stream, 0, 6, workers))

    alone = taken(0)
    for workers in (1, 2, 3):
        for one, other in zip(alone, taken(workers), strict=True):
            assert (one.images == other.images).all()
            assert (one.samples == other.samples).all()
            assert one.unreadable == other.unreadable == ()
