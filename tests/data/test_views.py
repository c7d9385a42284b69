"""Two augmented views: functions of (seed, step, slot), each transformation against torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageFilter

from cjepa.data import DataConfig, FolderConfig, TrainingStream, ViewsStream
from cjepa.data.augmentation import VIEW_DRAWS, ViewsConfig, random_view, turned
from cjepa.data.crops import DRAWS
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.randomness import Stream, uniform_rows
from tests.training.conftest import Textures

functional = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision is not installed")
NOTHING = ViewsConfig(flip=False, jitter=0, grey=0, blur=0, solarize=0, crop_scale=(1.0, 1.0))
WHOLE = [0.5] * DRAWS


def photograph() -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize(
        (48, 48), Image.Resampling.BICUBIC
    )


def view(config: ViewsConfig, others: list[float]) -> Image.Image:
    pixels = random_view(photograph(), [*WHOLE, *others], (48, 48), (1.0, 1.0), config)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def drawn(**changed: float) -> list[float]:
    """Numbers after those of the crop; by default nothing happens."""
    names = ("jitter", "order", "brightness", "contrast", "saturation", "hue", "grey", "blur", "sigma", "solarize")
    return [changed.get(name, 0.5) for name in names]


def same(one: Image.Image, other: Image.Image, tolerance: int = 0) -> bool:
    return max(high for _, high in ImageChops.difference(one, other).getextrema()) <= tolerance


def test_the_count_of_draws_is_what_is_used() -> None:
    assert len(drawn()) == VIEW_DRAWS - DRAWS


def test_without_anything_it_is_the_crop() -> None:
    assert same(view(NOTHING, drawn()), photograph())


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("brightness", functional.adjust_brightness),
        ("contrast", functional.adjust_contrast),
        ("saturation", functional.adjust_saturation),
    ],
)
@pytest.mark.parametrize("number", [0.0, 0.25, 0.9])
def test_jitter_is_that_of_torchvision(name: str, theirs: object, number: float) -> None:
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | {name: 0.4}
    config = NOTHING.model_copy(update={"jitter": 1.0, **strengths})
    expected = theirs(photograph(), 1.0 + 0.4 * (2.0 * number - 1.0))  # type: ignore[operator]
    without = view(config, drawn(**{name: number}))
    # Turning the hue by nothing goes to HSV and back, which rounds.
    assert same(without, turned(expected, 0.0), 8)
    assert not same(without, photograph(), 8) or number == 0.5


@pytest.mark.parametrize("hue", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_that_of_torchvision(hue: float) -> None:
    assert same(turned(photograph(), hue), functional.adjust_hue(photograph(), hue))


def test_grey_and_solarized_are_those_of_torchvision() -> None:
    grey = view(NOTHING.model_copy(update={"grey": 1.0}), drawn())
    assert same(grey, functional.to_grayscale(photograph(), 3))
    solarized = view(NOTHING.model_copy(update={"solarize": 1.0}), drawn())
    assert same(solarized, functional.solarize(photograph(), 128))


@pytest.mark.parametrize("side", [48, 224])
@pytest.mark.parametrize(("sigma", "pixels"), [(0.0, 0.1), (0.5, 1.05), (1.0, 2.0)])
def test_blur_grows_with_the_image(side: int, sigma: float, pixels: float) -> None:
    """0.1 to 2 pixels at 224, where it is that of SimSiam and VICReg."""
    draws = [*WHOLE, *drawn(sigma=sigma)]
    found = random_view(photograph(), draws, (side, side), (1.0, 1.0), NOTHING.model_copy(update={"blur": 1.0}))
    sharp = Image.fromarray(random_view(photograph(), draws, (side, side), (1.0, 1.0), NOTHING).transpose(1, 2, 0))
    expected = np.asarray(sharp.filter(ImageFilter.GaussianBlur(pixels * side / 224))).transpose(2, 0, 1)
    np.testing.assert_array_equal(found, expected)


def test_the_order_of_the_changes_is_drawn() -> None:
    config = NOTHING.model_copy(update={"jitter": 1.0, "contrast": 0.9, "brightness": 0.9})
    one, other = (view(config, drawn(order=order, brightness=1.0, contrast=0.0)) for order in (0.0, 0.99))
    assert not same(one, other, 2)


def stream(kind: type[TrainingStream], first: int = 0, slots: int | None = None, seed: int = 0) -> TrainingStream:
    config = DataConfig(source=FolderConfig(path="unused"), image_size=16)
    sampler = build_sampler(MultiblockConfig(), (8, 8), seed, 8)
    return kind(Textures(per_class=10), config, sampler, 8, seed, first, slots)


def test_any_slice_of_a_step_is_a_slice_of_the_whole() -> None:
    whole, part = stream(ViewsStream)[5], stream(ViewsStream, 3, 4)[5]
    assert whole.second is not None
    assert part.second is not None
    assert torch.equal(part.images, whole.images[3:7])
    assert torch.equal(part.second, whole.second[3:7])
    assert torch.equal(part.samples, whole.samples[3:7])


def test_views_differ_from_each_other_and_from_step_to_step() -> None:
    whole = stream(ViewsStream)
    batch, later, again = whole[0], whole[10], whole[0]
    assert batch.second is not None
    assert again.second is not None
    assert torch.equal(batch.second, again.second)
    assert (batch.images != batch.second).flatten(1).any(1).all()
    assert not torch.equal(batch.images, later.images)
    assert not torch.equal(batch.images, stream(ViewsStream, seed=1)[0].images)


def test_the_images_are_those_of_any_other_run() -> None:
    assert torch.equal(stream(ViewsStream)[3].samples, stream(TrainingStream)[3].samples)


def test_each_change_happens_as_often_as_the_config_says() -> None:
    rows = uniform_rows(0, Stream.VIEWS, 0, 0, 400, VIEW_DRAWS).tolist()
    grey = NOTHING.model_copy(update={"grey": 0.2})
    images = [random_view(photograph(), row, (16, 16), (1.0, 1.0), grey) for row in rows]
    share = np.mean([(image[0] == image[1]).all() and (image[1] == image[2]).all() for image in images])
    assert 0.13 < share < 0.27
