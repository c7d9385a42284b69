from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa.data import DataConfig, EvaluationImages, FolderConfig, TwoCrops, open_source
from cjepa.errors import InputError


def config_for(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(source=FolderConfig(path=folder), image_size=(12, 16), **changes)


def test_centre_crops_in_the_order_of_the_source(colours: Path) -> None:
    config = config_for(colours)
    source = open_source(config, 0).train
    images = EvaluationImages(source, config)
    assert len(list(images)) == len(images) == 24
    for index in (0, 13, 23):
        assert images[index].shape == (3, 12, 16)
        assert images[index].dtype == torch.uint8
        expected = torch.tensor(source.load(index).getpixel((0, 0)), dtype=torch.uint8)
        assert (images[index] == expected[:, None, None]).all()


def test_an_unreadable_image_is_replaced_by_one_of_its_class(colours: Path) -> None:
    config = config_for(colours)
    source = open_source(config, 0).train
    good = EvaluationImages(source, config)
    expected = [good[index] for index in range(24)]
    (colours / source.names[3]).write_bytes(b"")  # the last of its class: the first stands in
    (colours / source.names[4]).write_bytes(b"")
    images = EvaluationImages(source, config)
    assert torch.equal(images[3], expected[0])
    assert torch.equal(images[4], expected[5])
    assert torch.equal(TwoCrops(source, config, 0)[4][0], expected[5])


def test_a_class_without_readable_images_is_refused(colours: Path) -> None:
    config = config_for(colours)
    source = open_source(config, 0).train
    for name in source.names[:4]:
        (colours / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{source.names[1]} could not be read .*replace or remove"):
        EvaluationImages(source, config)[1]


def test_two_crops_differ_and_depend_only_on_seed_and_index(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    config = config_for(tmp_path)
    source = open_source(config, 0).train
    pairs = TwoCrops(source, config, 5)
    assert len(list(pairs)) == len(pairs) == 3
    assert pairs[1].shape == (2, 3, 12, 16)
    assert pairs[1].dtype == torch.uint8
    assert not torch.equal(pairs[1][0], pairs[1][1])
    assert torch.equal(pairs[1], TwoCrops(source, config, 5)[1])
    assert not torch.equal(pairs[1], TwoCrops(source, config, 6)[1])
