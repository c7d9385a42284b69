"""Labelled images whose class any encoder shows, and an encoder, for tests of evaluations that train."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cjepa.data import DataConfig, FolderConfig, open_source
from cjepa.evaluation.labelled import LabelledImages
from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def write_colours(folder: Path, count: int, seed: int) -> None:
    """Noise around a colour of each of three classes."""
    random = np.random.default_rng(seed)
    for number, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.normal(100, 40, (16, 16, 3))
            pixels[..., number] += 60
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")


def labelled_colours(folder: Path) -> LabelledImages:
    """20 training and 12 test images of each class, 16 pixels wide."""
    write_colours(folder / "train", 20, 0)
    write_colours(folder / "test", 12, 1)
    data = DataConfig(source=FolderConfig(path=folder), image_size=16, mean=MEAN, std=STD)
    splits = open_source(data, 0)
    assert splits.test is not None
    return LabelledImages(data, splits.train, splits.test)


def small_encoder(patch_size: int = 4, size: int = 16) -> PretrainedEncoder:
    """Untrained, of two blocks."""
    transformer = VisionTransformer(EncoderConfig(width=32, depth=2, heads=2, patch_size=patch_size))
    transformer.initialise(torch.Generator().manual_seed(0))
    return PretrainedEncoder(transformer, (size, size), MEAN, STD)
