from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import ValidationError

from cjepa.data import demo
from cjepa.data.arrays import ArraySource
from cjepa.data.decoding import PILLOW_LIMIT, decode
from cjepa.data.demo import DemoConfig, open_demo
from cjepa.data.source import NO_LABEL, ImageSource
from cjepa.errors import InputError

SMALL = DemoConfig(train_crops=6, labelled_crops=6, test_crops=4, grey=False)


def tiles(source: ImageSource | None) -> npt.NDArray[np.uint8]:
    assert isinstance(source, ArraySource)
    return source.images


def test_eighteen_photographs_by_name() -> None:
    splits = open_demo(SMALL, 0)
    assert splits.test is not None
    assert len(splits.train.classes) == 18
    assert splits.train.classes == splits.test.classes == tuple(sorted(splits.train.classes))
    assert np.bincount(splits.train.labels).tolist() == [6] * 18
    assert np.bincount(splits.test.labels).tolist() == [4] * 18
    assert splits.train.names[7] == "brick/00007"
    assert len(set(splits.train.names)) == len(splits.train) == 108
    image = splits.train.load(7)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), tiles(splits.train)[7])


def test_deterministic_given_a_seed() -> None:
    one, two, other = open_demo(SMALL, 0), open_demo(SMALL, 0), open_demo(SMALL, 1)
    np.testing.assert_array_equal(tiles(one.train), tiles(two.train))
    assert one.train.fingerprint == two.train.fingerprint
    assert one.test is not None
    assert other.test is not None
    assert len({one.train.fingerprint, one.test.fingerprint, other.train.fingerprint, other.test.fingerprint}) == 4
    assert not np.array_equal(tiles(one.train), tiles(other.train))


def test_a_folder_of_the_same_name_is_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_demo(SMALL, 0).notes == ()
    (tmp_path / "demo").mkdir()
    [note] = open_demo(SMALL, 0).notes
    assert note.endswith("for those in the folder demo that is here write data=./demo")


def test_train_and_test_come_from_disjoint_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With photographs red in two opposite quarters and blue in the others, no tile may hold the other colour."""

    def two_coloured(path: object, max_pixels: int) -> Image.Image:
        photograph = decode(path, max_pixels)  # type: ignore[arg-type]
        halves = Image.new("RGB", photograph.size, (255, 0, 0))
        halves.paste((0, 0, 255), (photograph.width // 2, 0, photograph.width, photograph.height // 2))
        halves.paste((0, 0, 255), (0, photograph.height // 2, photograph.width // 2, photograph.height))
        return halves

    monkeypatch.setattr(demo, "decode", two_coloured)
    splits = open_demo(SMALL, 0)
    # the seam falls on a pixel only if the width is even; enlarging spreads it over two pixels
    red, blue = tiles(splits.train)[:, 2], tiles(splits.test)[:, 0]
    assert (red.mean(axis=(1, 2)) < 8).all()
    assert (blue.mean(axis=(1, 2)) < 8).all()


def test_all_of_a_half_is_cropped() -> None:
    config = DemoConfig(train_crops=300, test_crops=1, grey=False)
    half = Image.fromarray(np.indices((320, 240)).transpose(1, 2, 0).repeat([1, 2], axis=2).astype(np.uint8))
    draws = demo._draws(0, 0, 300)
    rows = demo._tiles((half, half), config, draws)[:, 0]
    assert rows.min() <= 3
    sides = 64 + (draws[:, 0] * 65).astype(int)
    assert sides.min() == 64
    assert sides.max() == 128


def test_tile_size() -> None:
    assert open_demo(DemoConfig(train_crops=2, test_crops=1, tile_size=48), 0).train.load(0).size == (48, 48)


def test_the_photographs_are_real_and_not_constant() -> None:
    for path in demo._installed_photographs():
        assert np.asarray(decode(path, PILLOW_LIMIT)).std() > 4, path.name


def missing(package: str) -> Callable[[str], ModuleSpec | None]:
    return lambda name: None if name == package else __import__("importlib.util").util.find_spec(name)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", missing("skimage"))
    with pytest.raises(InputError, match=r'pip install "cjepa\[demo\]"'):
        open_demo(SMALL, 0)


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PHOTOGRAPHS", {"skimage": ("data/nothing.png",)})
    with pytest.raises(InputError, match=r"lacks nothing\.png"):
        open_demo(SMALL, 0)


@pytest.mark.parametrize("crop_size", [(64, 161), (128, 64)])
def test_crops_must_fit_into_a_half(crop_size: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match="crop_size"):
        DemoConfig(crop_size=crop_size)


def test_grey_tiles_have_no_colour_but_the_same_brightness() -> None:
    coloured = tiles(open_demo(SMALL, 0).train).astype(np.float64)
    grey = tiles(open_demo(SMALL.model_copy(update={"grey": True}), 0).train).astype(np.float64)
    assert np.ptp(coloured, axis=1).max() > 50
    assert np.ptp(grey, axis=1).max() == 0
    brightness = np.tensordot(coloured, [0.299, 0.587, 0.114], (1, 0))
    assert np.abs(grey[:, 0] - brightness).mean() < 1.5


def test_a_few_training_tiles_are_labelled_and_all_test_tiles() -> None:
    splits = open_demo(DemoConfig(train_crops=6, labelled_crops=2, test_crops=4), 0)
    assert splits.test is not None
    assert splits.train.labels.reshape(18, 6).tolist() == [[label] * 2 + [NO_LABEL] * 4 for label in range(18)]
    assert (splits.test.labels != NO_LABEL).all()
