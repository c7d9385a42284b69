"""Labelled images: when accuracies of them compare."""

from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from cjepa.data import DataConfig, open_source
from cjepa.data.parquet import ParquetConfig
from cjepa.evaluation.labelled import LabelledImages, counts_images
from tests.data.packing import picture


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Images with two columns of labels of the same two classes, in two files."""
    for split in ("train", "test"):
        columns = {
            "image": [picture(number) for number in range(8)],
            "colour": [number % 2 for number in range(8)],
            "shape": [number // 4 for number in range(8)],
        }
        parquet.write_table(arrow.table(columns), tmp_path / f"{split}.parquet")
    return tmp_path


def labelled(folder: Path, column: str) -> LabelledImages:
    data = DataConfig(source=ParquetConfig(path=folder, label_column=column), image_size=16)
    splits = open_source(data, 0)
    assert splits.test is not None
    return LabelledImages(data, splits.train, splits.test)


def test_labels_of_another_column_are_another_protocol(table: Path) -> None:
    colour, shape = labelled(table, "colour"), labelled(table, "shape")
    assert colour.train.classes == shape.train.classes
    assert not np.array_equal(colour.train.labels, shape.train.labels)
    assert colour.protocol() == labelled(table, "colour").protocol()
    assert colour.protocol() != shape.protocol()
    assert counts_images(colour.protocol())
