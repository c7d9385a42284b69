"""Embedded real images: crops of the photographs that scikit-image and scikit-learn install, named by photograph."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from cjepa.data.arrays import ArraySource
from cjepa.data.crops import Box, resized
from cjepa.data.decoding import PILLOW_LIMIT, decode
from cjepa.data.source import NO_LABEL, Splits
from cjepa.errors import InputError
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Part

PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/cell.png",
        "data/chelsea.png",
        "data/clock_motion.png",
        "data/coffee.png",
        "data/coins.png",
        "data/grass.png",
        "data/gravel.png",
        "data/hubble_deep_field.jpg",
        "data/ihc.png",
        "data/moon.png",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
"""Files inside the installed packages; drawings (logo, phantom) and scanned text are left out."""

Pixels = Annotated[int, Field(ge=4)]


class DemoConfig(Part):
    """Grey crops of 18 photographs, to be told apart by photograph: a task that colour cannot solve."""

    name: Literal["demo"] = "demo"
    """The kind of source; data.source lists all."""
    train_crops: int = Field(300, ge=2)
    """Crops from two opposite quarters of each photograph, for training."""
    labelled_crops: int = Field(20, ge=1)
    """How many of the training crops of a photograph carry its name; evaluations learn from these alone."""
    test_crops: int = Field(120, ge=1)
    """Crops from the other two quarters of each photograph, for evaluation."""
    photograph_size: Pixels = 320
    """Shorter side of the photographs before they are cropped, in pixels."""
    crop_size: tuple[Pixels, Pixels] = (64, 128)
    """Side of a square crop in pixels of the photograph: smallest and largest."""
    tile_size: Pixels = 32
    """Side of the images that crops are resized to, in pixels."""
    grey: bool = True
    """Drop the colour of all photographs, so that it cannot name them; the images stay RGB with equal channels."""

    @model_validator(mode="after")
    def _crops_fit_in_a_half(self) -> "DemoConfig":
        smallest, largest = self.crop_size
        if not smallest <= largest <= self.photograph_size // 2:
            raise ValueError(
                f"crop_size: must ascend and fit into half a photograph ({self.photograph_size // 2} pixels), "
                f"got {smallest}, {largest}"
            )
        return self


def open_demo(config: DemoConfig, seed: int) -> Splits:
    """Training tiles from two opposite quarters of each photograph, test tiles from the others: no pixel is in both.

    Position and size of the crops are functions of the seed. Raises InputError if scikit-image is not installed.
    """
    paths = _installed_photographs()
    classes = tuple(path.stem for path in paths)
    train, test = [], []
    for number, path in enumerate(paths):
        rising, falling = _halves(path, config)
        train.append(_tiles(rising, config, _draws(seed, 2 * number, config.train_crops)))
        test.append(_tiles(falling, config, _draws(seed, 2 * number + 1, config.test_crops)))
    labelled = _source(train, classes, config.labelled_crops), _source(test, classes, config.test_crops)
    return Splits(*labelled, notes=_notes())


def _notes() -> tuple[str, ...]:
    """What the user should know who may have meant a folder of the same name."""
    name = DemoConfig().name
    if not Path(name).is_dir():
        return ()
    return (f"data={name} are the built-in images; for those in the folder {name} that is here write data=./{name}",)


def _source(tiles: list[npt.NDArray[np.uint8]], classes: tuple[str, ...], labelled: int) -> ArraySource:
    """Tiles by photograph, of which the first `labelled` are labelled."""
    labels = [np.where(np.arange(len(part)) < labelled, label, NO_LABEL) for label, part in enumerate(tiles)]
    owners = [name for name, part in zip(classes, tiles, strict=True) for _ in part]
    names = [f"{name}/{index:05d}" for index, name in enumerate(owners)]
    return ArraySource(np.concatenate(tiles), np.concatenate(labels).astype(np.int64), classes, names)


def _draws(seed: int, half: int, count: int) -> npt.NDArray[np.float64]:
    return uniform_rows(seed, Stream.EVALUATION, half, 0, count, 3)


def _installed_photographs() -> list[Path]:
    """Paths in the order of class names. Found without importing the packages: skimage.data may download."""
    paths = []
    for package, files in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(
                "data: the demo needs the photographs of scikit-image, which is not installed; "
                'run: pip install "cjepa[demo]"'
            )
        paths += [Path(spec.origin).parent / file for file in files]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"data: the installed scikit-image or scikit-learn lacks {', '.join(missing)}; "
            'run: pip install --force-reinstall "cjepa[demo]"'
        )
    return sorted(paths, key=lambda path: path.stem)


Half = tuple[Image.Image, Image.Image]
"""Two opposite quarters of a photograph."""


def _halves(path: Path, config: DemoConfig) -> tuple[Half, Half]:
    """The two pairs of opposite quarters at working size: left and right, or top and bottom, would differ in kind."""
    photograph = decode(path, PILLOW_LIMIT)
    if config.grey:
        photograph = photograph.convert("L").convert("RGB")
    unit = config.photograph_size / min(photograph.size)
    width, height = round(photograph.width * unit), round(photograph.height * unit)
    photograph = photograph.resize((width, height), Image.Resampling.BICUBIC)
    across, down = (0, width // 2, width), (0, height // 2, height)
    quarters = [[photograph.crop((across[x], down[y], across[x + 1], down[y + 1])) for x in range(2)] for y in range(2)]
    return (quarters[0][0], quarters[1][1]), (quarters[0][1], quarters[1][0])


def _tiles(half: Half, config: DemoConfig, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Square crops of the two quarters in turn."""
    smallest, largest = config.crop_size
    tile = (config.tile_size, config.tile_size)
    tiles = np.empty((len(draws), 3, *tile), dtype=np.uint8)
    for index, (size, across, down) in enumerate(draws):
        quarter = half[index % 2]
        side = smallest + int(size * (largest - smallest + 1))
        left, top = int(across * (quarter.width - side + 1)), int(down * (quarter.height - side + 1))
        tiles[index] = resized(quarter, Box(left, top, side, side), tile)
    return tiles
