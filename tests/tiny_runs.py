"""Folders of tiny images and runs that take seconds, for the tests of the commands."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TINY = """\
# a tiny run
data: {source: {name: folder, path: images}, image_size: 16, crop_scale: [0.5, 1.0]}
model:
  encoder: {width: 32, depth: 1, heads: 2, patch_size: 4}
  predictor: {width: 16, depth: 1}
objective: {name: cjepa-context, beta: 0.1}
training:
  epochs: 1
  batch_size: 16
  precision: float32
  device: cpu
  log_every: 1
  optimizer: {learning_rate: {warmup_epochs: 0.25}}
monitor: {evaluations: []}
logging: {report: false}
"""
"""Three steps on 48 images; without a report and a linear probe, which take longer than they do."""


def write_images(folder: Path, classes: Sequence[str] = ("a", "b", "c"), count: int = 16, seed: int = 0) -> Path:
    """`count` gratings of 16 pixels for each class, in a folder of its own; "" writes into the folder itself."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            wave = np.sin(np.arange(16) * (number + 1) * 0.6 + random.uniform(0, 6))[None, :, None]
            pixels = 128 + 70 * wave + random.normal(0, 15, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}{index:03d}.png")
    return folder


def write_config(folder: Path, text: str = TINY) -> Path:
    """The tiny run as a file."""
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path
