"""A run that takes milliseconds a step: images of one of a few textures, a model of one or two narrow blocks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cjepa.config import RunConfig, parse


class Textures:
    """Gratings of random phase and colour, by orientation: an ImageSource in memory."""

    def __init__(self, per_class: int, classes: int = 4, side: int = 16, seed: int = 0, constant: bool = False) -> None:
        random = np.random.default_rng(seed)
        rows, columns = np.mgrid[:side, :side]
        self.labels: npt.NDArray[np.int64] = np.repeat(np.arange(classes), per_class).astype(np.int64)
        self.classes = tuple(f"angle{index}" for index in range(classes))
        self.names: Sequence[str] = [f"{self.classes[label]}/{i}.png" for i, label in enumerate(self.labels)]
        self.fingerprint = f"{per_class} {classes} {side} {seed} {constant}"
        self.images = np.empty((len(self.labels), side, side, 3), np.uint8)
        for index, label in enumerate(self.labels):
            angle = np.pi * label / classes
            wave = np.sin(
                2.0 * np.pi * (np.cos(angle) * columns + np.sin(angle) * rows) / 5 + random.uniform(0, 2 * np.pi)
            )
            colour = random.uniform(0.3, 1.0, 3)
            pixels = 127 + 90 * wave[..., None] * colour + random.normal(0, 12, (side, side, 3))
            self.images[index] = 127 if constant else pixels.clip(0, 255)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


@pytest.fixture
def tiny() -> RunConfig:
    """16 px, patches of 2, batches of 32 over 256 images: 8 steps an epoch."""
    return tiny_config()


def tiny_config(**changes: object) -> RunConfig:
    """The tiny run with some keys of the top level replaced."""
    values: dict[str, object] = {
        "data": {"source": {"name": "folder", "path": "unused"}, "image_size": 16, "crop_scale": [0.5, 1.0]},
        "model": {
            "encoder": {"width": 32, "depth": 2, "heads": 2, "patch_size": 2, "patch_projection": "unit_variance"},
            "predictor": {"width": 16, "depth": 1, "heads": 2},
        },
        "objective": {"name": "cjepa-context", "beta": 0.1},
        "training": training(),
        "monitor": {"train_images": 128, "test_images": 64, "evaluations": []},
    }
    return parse(RunConfig, values | changes)


def training(epochs: float = 3, peak: float = 2e-3, momentum: float = 0.98) -> dict[str, object]:
    """The tiny run's training part."""
    return {
        "epochs": epochs,
        "batch_size": 32,
        "precision": "float32",
        "device": "cpu",
        "log_every": 1,
        "evaluate_every": 1,
        "checkpoint_every": 1,
        "momentum": {"start": momentum, "final": 1.0 if momentum else 0.0},
        "optimizer": {
            "learning_rate": {"start": 1e-4, "peak": peak, "final": 1e-6, "warmup_epochs": 0.5},
            "weight_decay": {"start": 0.04, "final": 0.04},
        },
    }
