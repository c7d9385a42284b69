"""Arrays as parts of a page: data addresses of images, and numbers for its script."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from cjepa.visualization.style import pixels

LARGEST = 224
"""Longer side of an image on the page, in pixels."""
_QUALITY = 82


def photograph(image: UInt8[np.ndarray, "H W c"]) -> str:
    """The address of an image whose pixels may change a little (WebP)."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "WEBP", quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{_text(stream.getvalue())}"


def exact(image: UInt8[np.ndarray, "H W c"]) -> str:
    """The address of an image whose pixels stay as they are (PNG)."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{_text(stream.getvalue())}"


def numbers(values: UInt8[Tensor, "..."]) -> str:
    """Bytes in base64, row by row."""
    return _text(values.contiguous().numpy().tobytes())


def for_page(images: UInt8[Tensor, "n 3 H W"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Images as a page shows them: none is larger than LARGEST."""
    shown = pixels(images)
    height, width = shown.shape[1:3]
    shrink = LARGEST / max(height, width)
    if shrink >= 1.0:
        return shown
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in shown])


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
