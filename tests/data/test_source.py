from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cjepa.data import DataConfig, DemoConfig, FolderConfig, ListConfig, ShardsConfig, SourceConfig, open_source
from cjepa.data.arrays import ArraySource
from cjepa.data.source import ImageSource, Subset, holdout
from cjepa.errors import InputError
from cjepa.runs.shard_writing import Packing
from cjepa.runs.sharding import shard_images


def source_of(labels: list[int]) -> ArraySource:
    tiles = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 3, 4, 4))
    source = ArraySource(np.ascontiguousarray(tiles), np.array(labels, np.int64), ("a", "b"))
    source.names = [f"{index}.png" for index in range(len(labels))]
    return source


def test_holdout_divides_the_labelled_images() -> None:
    labels = np.random.default_rng(0).integers(-1, 2, 3000).tolist()
    source = source_of(labels)
    splits = holdout(source)
    assert splits is not None
    assert isinstance(splits.train, Subset)
    assert isinstance(splits.test, Subset)
    together = np.concatenate([splits.train.indices, splits.test.indices])
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(source.labels >= 0))
    assert len(splits.test) / len(together) == pytest.approx(0.2, abs=0.03)
    assert (splits.test.labels == source.labels[splits.test.indices]).all()
    assert isinstance(splits.test, ImageSource)


def test_an_image_stays_on_its_side_when_others_come() -> None:
    few, many = holdout(source_of([0, 1] * 50)), holdout(source_of([0, 1] * 100))
    assert few is not None
    assert many is not None
    assert few.test is not None
    assert many.test is not None
    assert list(few.test.names) == [name for name in many.test.names if int(name[:-4]) < 100]


@pytest.mark.parametrize("labels", [[-1] * 200, [0], []])
def test_no_holdout_without_labels_on_both_sides(labels: list[int]) -> None:
    assert holdout(source_of(labels)) is None


def test_subset_renumbers() -> None:
    source = source_of([0, 1, 0, 1])
    subset = Subset(source, np.array([3, 1]))
    assert len(subset) == 2
    assert subset.names == ["3.png", "1.png"]
    assert subset.labels.tolist() == [1, 1]
    assert subset.load(0).getpixel((0, 0)) == (3, 3, 3)
    assert subset.fingerprint != Subset(source, np.array([1, 3])).fingerprint != source.fingerprint


def test_what_cannot_be_looked_at_is_refused_in_words(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"data: .*xxx cannot be read: File name too long; check the path"):
        open_source(DataConfig(source=FolderConfig(path=tmp_path / ("x" * 300))), 0)

    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "stat", refuse)
    with pytest.raises(InputError, match="private cannot be read: Permission denied; check the path"):
        open_source(DataConfig(source=FolderConfig(path=tmp_path / "private")), 0)


def test_open_source_opens_every_kind(colours) -> None:
    folder = open_source(DataConfig(source=FolderConfig(path=colours)), 0)
    assert len(folder.train) == 24
    demo = open_source(DataConfig(source=DemoConfig(train_crops=2, test_crops=1)), 0)
    assert len(demo.train) == 36


@pytest.mark.parametrize("kind", ["folder", "list", "shards"])
def test_one_image_is_too_few_to_train_on(tmp_path: Path, kind: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "only.png")
    source: SourceConfig = FolderConfig(path=images)
    if kind == "list":
        (tmp_path / "list.txt").write_text("only.png\n")
        source = ListConfig(path=tmp_path / "list.txt", root=images)
    if kind == "shards":
        shard_images(DataConfig(source=source), tmp_path / "shards", Packing())
        source = ShardsConfig(path=tmp_path / "shards")
    with pytest.raises(InputError, match=r"only one image .* \(only\.png\); training needs at least 2"):
        open_source(DataConfig(source=source), 0)
    assert len(open_source(DataConfig(source=source), 0, at_least=1).train) == 1
