"""How the two views of an image are made different: crop, mirror, colour, grey, blur, solarisation.

SimCLR's list, with BYOL's solarisation, as VICReg and SimSiam use them. Each view is a function of the uniform numbers
that it is given, so that a run continues to the bit; Pillow does the arithmetic, in 8 bits as torchvision's does.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import Field, model_validator

from cjepa.data.crops import DRAWS, random_crop
from cjepa.types import Part

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]

_ORDERS = tuple(permutations(range(4)))
_OTHERS = 1 + 1 + 4 + 1 + 2 + 1  # jitter or not, its order, its factors; grey; blur or not, its sigma; solarise
VIEW_DRAWS = DRAWS + _OTHERS
"""Uniform numbers that one view consumes."""
_BLUR = (0.1 / 224, 2.0 / 224)
"""Smallest and largest standard deviation of the blur as shares of the image's height: 0.1 to 2 px at 224 px."""
_SOLARISED_ABOVE = 128


class ViewsConfig(Part):
    """The two views of an image, for objectives that compare such (vicreg, simsiam); others do not use it."""

    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """Area of a view as a share of the image: smallest and largest (SimSiam: 0.2; VICReg: 0.08)."""
    flip: bool = True
    """Mirror half of the views."""
    jitter: Probability = 0.8
    """Probability that brightness, contrast, saturation and hue are changed, in random order."""
    brightness: Probability = 0.4
    """Brightness is multiplied by a factor in 1 - value .. 1 + value."""
    contrast: Probability = 0.4
    """The same for contrast."""
    saturation: Probability = 0.2
    """The same for saturation (SimSiam: 0.4)."""
    hue: float = Field(0.1, ge=0.0, le=0.5)
    """Hue is turned by at most this share of a full circle."""
    grey: Probability = 0.2
    """Probability that colour is dropped."""
    blur: Probability = 0.5
    """Probability of a Gaussian blur of 0.1 to 2 px at 224 px, in proportion at other sizes."""
    solarize: Probability = 0.1
    """Probability that values above 128 are inverted (SimSiam: 0)."""

    @model_validator(mode="after")
    def _scale_ascends(self) -> "ViewsConfig":
        low, high = self.crop_scale
        if low > high:
            raise ValueError(f"crop_scale: the first value ({low}) must not exceed the second ({high})")
        return self


def random_view(
    image: Image.Image,
    draws: Sequence[float],
    size: tuple[int, int],
    ratio: tuple[float, float],
    config: ViewsConfig,
) -> npt.NDArray[np.uint8]:
    """The view of an RGB image that VIEW_DRAWS uniform numbers select, of `size`: uint8 [3, H, W]."""
    pixels = random_crop(image, draws, size, config.crop_scale, ratio, config.flip)
    view = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    jitter, order, *factors, grey, blur, sigma, solarize = draws[DRAWS:]
    if jitter < config.jitter:
        changes = _changes(config, [2.0 * factor - 1.0 for factor in factors])
        for index in _ORDERS[int(order * len(_ORDERS))]:
            view = changes[index](view)
    if grey < config.grey:
        view = view.convert("L").convert("RGB")
    if blur < config.blur:
        view = view.filter(ImageFilter.GaussianBlur((_BLUR[0] + sigma * (_BLUR[1] - _BLUR[0])) * size[0]))
    if solarize < config.solarize:
        view = ImageOps.solarize(view, _SOLARISED_ABOVE)
    return np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))


def _changes(config: ViewsConfig, signed: Sequence[float]) -> tuple[Callable[[Image.Image], Image.Image], ...]:
    """Brightness, contrast, saturation and hue, each with its number in -1 .. 1 applied."""
    brightness, contrast, saturation, hue = signed
    return (
        lambda view: ImageEnhance.Brightness(view).enhance(1.0 + brightness * config.brightness),
        lambda view: ImageEnhance.Contrast(view).enhance(1.0 + contrast * config.contrast),
        lambda view: ImageEnhance.Color(view).enhance(1.0 + saturation * config.saturation),
        lambda view: turned(view, hue * config.hue),
    )


def turned(image: Image.Image, hue: float) -> Image.Image:
    """An RGB image with its hue turned by a share of a full circle, -0.5 to 0.5."""
    values = np.array(image.convert("HSV"))
    values[..., 0] += np.uint8(int(hue * 255) % 256)
    return Image.fromarray(values, "HSV").convert("RGB")
